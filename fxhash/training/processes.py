"""Training in several processes: one a GPU, or as many as a user names."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from fxhash.errors import TrainingError

# The process whose `run_together` started this one, in its environment.
_STARTER = "FXHASH_STARTER"


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


def prints_how_it_ends() -> bool:
    """Whether this process says that it was told to end, which is left to the one whose `run_together` started it."""
    return is_first_process() and _STARTER not in os.environ


def processes_for(device: str) -> int:
    """How many processes use all of a machine: one a GPU, or one.

    Args:
        device: `"auto"`, `"cpu"` or `"cuda"`.
    """
    return 1 if device == "cpu" else max(torch.cuda.device_count(), 1)


def refuse_unknown_device(device: str) -> None:
    """Check that a run can use a device.

    Raises:
        TrainingError: if there is no such device.
    """
    kind, colon, index = device.partition(":")
    if kind in ("cuda", "gpu") and colon:
        raise TrainingError(
            f"the device {device!r} is one of several: give cuda, and choose with the environment variable "
            f"CUDA_VISIBLE_DEVICES={index}"
        )
    if device not in ("auto", "cpu", "cuda", "mps"):
        meant = ": give cuda" if device == "gpu" else ": give auto, cpu or cuda"
        raise TrainingError(f"the device {device!r} is unknown{meant}")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("this machine has no CUDA device that PyTorch can use: give auto or cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise TrainingError("this machine has no MPS device that PyTorch can use: give auto or cpu")


def check_process_count(count: int, device: str) -> None:
    """Check that this machine has a GPU, or without them a core, for each of so many processes.

    Each of them holds the data and the model, and more of them than that are slower, not faster.

    Raises:
        TrainingError: if it has not.
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    most, of_what = (gpus, "GPU") if gpus else (_core_count(), "core")
    if count > most:
        raise TrainingError(
            f"{count} processes can't train on {most} {of_what}{'' if most == 1 else 's'}: give --processes {most}"
            f"{'' if most == 1 else ' or fewer'}"
        )


def _core_count() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class StoppedError(TrainingError):
    """The processes were told to end, as by Ctrl-C or `kill`."""


def run_together(count: int, command: Sequence[str]) -> None:
    """Run Python in several processes on this machine that reduce gradients together, as torchrun does.

    None of them outlives this process, however it ends, if it calls `end_with_starter`.

    Args:
        count: how many.
        command: arguments of Python, starting with a script, or `-m` and a module.

    Raises:
        TrainingError: if one of them fails; the others are stopped. What went wrong, it has printed itself.
        StoppedError: if this process is told to end.
    """
    from torch.distributed import run

    # Its long account of a failure says nothing that the process has not said.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(torch.get_num_threads() // count, 1)))
    os.environ[_STARTER] = str(os.getpid())
    try:
        run.main(["--standalone", f"--nproc-per-node={count}", *command])
    except ChildFailedError as error:
        raise TrainingError(f"{len(error.failures)} of {count} processes stopped with an error, see above") from error
    except SignalException as error:
        raise StoppedError(f"stopped by signal {int(error.sigval)}") from error
    finally:
        del os.environ[_STARTER]


def end_with_starter() -> None:
    """Let this process end soon after the one whose `run_together` started it, if one did: also if that is killed."""
    starter = int(os.environ.get(_STARTER, "0"))
    if starter:
        threading.Thread(target=_end_after, args=(starter,), daemon=True).start()


def end_when_told() -> None:
    """Let this process end at once when it is told to, if a `run_together` started it, which says so.

    Lightning would reduce a tensor first, between the gradients that the others are about to reduce.
    """
    if _STARTER in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_after(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(0.2)
    # At once, whatever this process waits for; what it writes is complete or not there.
    os._exit(1)
