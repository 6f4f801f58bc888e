"""How many bytes of gradients each process sends in a step of data-parallel training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import distributed
from torch.nn.parallel import DistributedDataParallel


# Not annotated: torch compares annotations with its own types, and here they are strings.
def _count_and_reduce(counter, bucket):  # type: ignore[no-untyped-def]
    counter.bytes += bucket.buffer().nbytes
    counter.steps += bucket.is_last()
    sent = distributed.all_reduce(bucket.buffer(), async_op=True).get_future()
    return sent.then(lambda future: future.value()[0] / distributed.get_world_size())


class GradientBytes(Callback):
    """Averages gradients over processes, as `DistributedDataParallel` does by default, and counts their bytes."""

    def __init__(self) -> None:
        self.bytes = 0
        self.steps = 0

    @property
    def bytes_a_step(self) -> int:
        """Bytes that each process sends in a step; 0 for a single process."""
        return self.bytes // self.steps if self.steps else 0

    def state_dict(self) -> dict[str, Any]:
        """What was counted so far, for a checkpoint: a run that goes on may have no step left."""
        return {"bytes": self.bytes, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the counts of a checkpoint."""
        self.bytes, self.steps = state_dict["bytes"], state_dict["steps"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register as the hook that communicates."""
        # Not by the strategy, which registers hooks on CUDA alone.
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(self, _count_and_reduce)
