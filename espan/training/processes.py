"""The processes of a run: their device, work that one does for all, and how they stop."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import gather_object

from espan.errors import EspanError
from espan.training.run import Setup

T = TypeVar("T")


def accelerator_for(setup: Setup) -> Accelerator:
    """Device, mixed precision and processes, from the setup or, if not set there, the launcher."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    launcher = " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
    mixed = {"fp32": "no", "fp64": "no"}.get(setup.precision or "", setup.precision)
    cpu = setup.cpu or not torch.cuda.is_available()
    if cpu and (mixed or os.environ.get("ACCELERATE_MIXED_PRECISION")) == "fp16":
        # Accelerate would train in fp32.
        raise EspanError("train: fp16 needs a GPU; on a CPU use --precision bf16 or fp32")
    # PyTorch 2.13 deprecates `broadcast_buffers`, but Accelerate cannot pass its successor.  The
    # strides of 1x1 kernels differ from those of their gradients, though both are contiguous.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision=mixed,
            gradient_accumulation_steps=setup.accumulate,
            # The only buffer is a constant.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except (ValueError, RuntimeError) as error:
        # Accelerate's errors do not name the variable: "invalid literal for int() with base 10".
        hint = f"; a launcher sets {launcher}: unset it to train in one process" if launcher else ""
        raise EspanError(f"train: {error}{hint}") from error


def run_once(accelerator: Accelerator, work: Callable[[], T], *, per_machine: bool = False) -> T:
    """Run `work` in one process, or one of each machine; return its result, by pickle, in all.

    An EspanError or OSError that it raises is raised in all processes.
    """
    if accelerator.num_processes == 1:
        return work()
    chosen = accelerator.is_local_main_process if per_machine else accelerator.is_main_process
    outcome: tuple[bytes, Exception | None] = (b"", None)
    if chosen:
        try:
            outcome = (pickle.dumps(work()), None)
        except (EspanError, OSError) as error:
            outcome = (b"", error)
    outcomes = gather_object([outcome])
    for _, raised in outcomes:
        if raised is not None:
            raise raised
    first = accelerator.process_index - accelerator.local_process_index if per_machine else 0
    result: T = pickle.loads(outcomes[first][0])
    return result


class StopRequest:
    """Whether the run was asked to stop.  Until `deferred`, a signal stops it at once."""

    def __init__(self) -> None:
        self.deferred = False
        self.requested = False

    def handle(self, number: int, _: object) -> None:
        # On Ctrl-C the terminal signals the launcher and all processes.  The launcher then signals
        # the processes again, which must not count as a second Ctrl-C.
        launched = "LOCAL_RANK" in os.environ
        if not self.deferred or (self.requested and not launched):
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn Ctrl-C and SIGTERM into a request to stop; a second signal stops the run at once.

    Signals reach the main thread only; in other threads this does nothing.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop.handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def no_tf32() -> Iterator[None]:
    """fp32 is fp32: by default PyTorch's convolutions take TF32 on a GPU, which keeps 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
