"""Shrink any PyTorch model to a chosen size: Structured Multi-Hashing as a `torch.fx` transformation.

>>> import fxhash, torch
>>> dense = torch.nn.Sequential(torch.nn.Linear(100, 200), torch.nn.ReLU(), torch.nn.Linear(200, 10))
>>> gm = fxhash.transform(dense, compress=0.1)
>>> deployed = fxhash.lower_for_deploy(gm)
>>> deployed(torch.zeros(5, 100)).shape
torch.Size([5, 10])
"""

from fxhash.api import lower_for_deploy, materialize, transform
from fxhash.capture.tracing import trace
from fxhash.errors import (
    BudgetError,
    CheckpointError,
    FxhashError,
    MemoryBudgetError,
    OpaqueWarning,
    PlanError,
    TransformError,
)
from fxhash.lowering.device import DeviceProfile
from fxhash.lowering.measuring import profile_device
from fxhash.recovery.recovering import Recovery, recover
from fxhash.smh.generator import SMHGenerator
from fxhash.smh.plan import CompressionPlan
from fxhash.storage.checkpoint import load, save
from fxhash.storage.onnx import export_onnx
from fxhash.storage.pretrained import from_pretrained, save_pretrained
from fxhash.summary import Summary, summary
from fxhash.train_form import lower_for_training
from fxhash.version import __version__

__all__ = [
    "BudgetError",
    "CheckpointError",
    "CompressionPlan",
    "DeviceProfile",
    "FxhashError",
    "MemoryBudgetError",
    "OpaqueWarning",
    "PlanError",
    "Recovery",
    "SMHGenerator",
    "Summary",
    "TransformError",
    "__version__",
    "export_onnx",
    "from_pretrained",
    "load",
    "lower_for_deploy",
    "lower_for_training",
    "materialize",
    "profile_device",
    "recover",
    "save",
    "save_pretrained",
    "summary",
    "trace",
    "transform",
]
