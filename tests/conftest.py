"""Settings for every test: one thread a process, and hypothesis profiles."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.helpers import may_be_opaque

torch.set_num_threads(1)

_SLOW_DATA = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("default", max_examples=30, deadline=None, suppress_health_check=_SLOW_DATA)
settings.register_profile("thorough", max_examples=1000, deadline=None, suppress_health_check=_SLOW_DATA)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def beside_the_scripts(monkeypatch):
    """The scripts of `benchmarks/` can be imported, as they import each other: by their bare names."""
    scripts = Path(__file__).parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(scripts))
    yield
    for path in scripts.glob("*.py"):
        sys.modules.pop(path.stem, None)


# Models of `tests.models` that are opaque, so that `transform` warns, whatever the test is about.
_OPAQUE = (
    *("BranchesOnMode", "BranchesOnInput", "RandomControlFlow", "NoGradBlock", "CountsCalls", "StarArguments"),
    "KeepsActivation",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if any(name in item.name for name in _OPAQUE):
            item.add_marker(may_be_opaque)
