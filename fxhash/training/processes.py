"""Training in several processes: one a GPU, or as many as a user names."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from fxhash.errors import TrainingError


def is_started_together() -> bool:
    """Whether this process is one of those that torchrun, or `run_together`, started."""
    return "WORLD_SIZE" in os.environ


def process_count() -> int:
    """How many processes train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_count_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if process_count() > 1 else 1


def rank() -> int:
    """Which of them this process is, from 0."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def is_first_process() -> bool:
    """Whether this process, of those that were started together, writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def processes_for(device: str) -> int:
    """How many processes use all of a machine: one a GPU, or one.

    Args:
        device: `"auto"`, `"cpu"` or `"cuda"`.
    """
    return 1 if device == "cpu" else max(torch.cuda.device_count(), 1)


def check_device(device: str) -> None:
    """Check that a run can use a device.

    Raises:
        TrainingError: if there is no such device.
    """
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise TrainingError(f"the device {device!r} is unknown: give auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("this machine has no CUDA device that PyTorch can use: give auto or cpu")


def run_together(count: int, command: Sequence[str]) -> None:
    """Run Python in several processes on this machine that reduce gradients together, as torchrun does.

    Args:
        count: how many.
        command: arguments of Python, starting with a script, or `-m` and a module.

    Raises:
        TrainingError: if one of them fails; the others are stopped. What went wrong, it has printed itself. Also if
            this process is told to end, as by Ctrl-C.
    """
    from torch.distributed import run

    # Its long account of a failure says nothing that the process has not said.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(torch.get_num_threads() // count, 1)))
    try:
        run.main(["--standalone", f"--nproc-per-node={count}", *command])
    except ChildFailedError as error:
        raise TrainingError(f"{len(error.failures)} of {count} processes stopped with an error, see above") from error
    except SignalException as error:
        raise TrainingError(f"stopped by signal {int(error.sigval)}: go on with --resume") from error
