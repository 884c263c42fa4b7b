"""A training step that runs on the device alone, captured as a CUDA graph.

The host sends crops and a learning rate, and launches one graph; it reads numbers only when asked.
A step of ESPAN with GRep otherwise launches two thousand small kernels, one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espan.data.on_device import RawCrops, finish
from espan.training.flat import FlatAdamW, flatten
from espan.training.merging import Merging

Output = Tensor | tuple[Tensor, Tensor]

WARM_UP = 3  # steps before the capture, in which libraries allocate and choose their kernels
AHEAD = 8  # steps that the host may be ahead of the GPU; each holds its crops in pinned memory


@dataclass(frozen=True)
class Numbers:
    """What was measured since the last reset, except `skipped`.

    Attributes:
        loss: the mean over the finite steps.
        last_loss, norm: loss and norm of the gradient of the last step.
        skipped: the number of steps whose loss or gradient was not finite.
        longest: the most of them in a row.
    """

    loss: float
    last_loss: float
    norm: float
    skipped: int
    longest: int


class CapturedStep:
    """Merge, forward, loss, backward, clip, AdamW and average of one network.

    The parameters of the network and its average, and the optimizer's moments, become views of flat
    buffers; they can be read and saved at any time.  The numbers are those of the same operations
    one at a time, up to rounding.

    Args:
        network: in training form, on its device.
        average: a copy of it.
        plain: the same network with plain convolutions, whose weights are not used.
        optimizer: of the network.
        loss: of an output and HR.
        clip: the largest norm of the gradient; None: no limit.
        autocast: dtype of the convolutions; None: that of the network.
        scaler: of fp16, or None.
        skipped: number of skipped steps so far.
        capture: whether to capture a graph, rather than run each operation at once.
    """

    def __init__(
        self,
        network: nn.Module,
        average: nn.Module,
        plain: nn.Module,
        optimizer: torch.optim.AdamW,
        *,
        loss: Callable[[Output, Tensor], Tensor],
        clip: float | None,
        autocast: torch.dtype | None,
        scaler: torch.amp.GradScaler | None,
        skipped: int,
        capture: bool,
    ) -> None:
        # cuDNN has no fp32 kernels without TF32 for channels last, and converts around each call.
        self._channels_last = layout = autocast is not None
        self._merging = Merging(network, channels_last=layout)
        self._flat = self._merging.flat
        self._average = flatten(Merging.in_order(average), channels_last=layout)
        self._plain, self._loss, self._clip = plain, loss, clip
        self._adamw = FlatAdamW(
            optimizer, self._merging.parameters, self._flat, channels_last=layout
        )
        self._autocast, self._scaler = autocast, scaler
        self._weight = self._flat.new_zeros(())  # of the average's update
        numbers = torch.zeros(7, dtype=torch.float64, device=self._flat.device)
        self._numbers = numbers
        self._sum, self._finite, self._last, self._norm = numbers[:4]
        self._skipped, self._in_a_row, self._longest = numbers[4:]
        self._skipped.fill_(skipped)
        self._capture = capture
        self._steps = 0
        self._launched: deque[torch.cuda.Event] = deque()
        self._crops: list[RawCrops] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream(self._flat.device) if capture else None

    def __call__(self, crops: Sequence[RawCrops], *, rate: float, weight: float) -> None:
        """Take one step.

        Args:
            crops: of the step, in one or more parts of equal size.
            rate: the learning rate.
            weight: of the new weights in the average.
        """
        if not self._crops:
            self._crops = [part.to(self._flat.device) for part in crops]
        for mine, part in zip(self._crops, crops, strict=True):
            mine.copy_(part)
        self._adamw.rate.fill_(rate)
        self._weight.fill_(weight)
        self._steps += 1
        if self._graph is not None:
            self._graph.replay()
        elif self._stream is None:
            self._step()
        elif self._steps <= WARM_UP:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._step()
            torch.cuda.current_stream().wait_stream(self._stream)
        else:
            graph = torch.cuda.CUDAGraph()
            # Other threads pin memory meanwhile, which "global" would not allow.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._step()
            self._graph = graph
            graph.replay()
        if self._stream is not None:
            self._launched.append(torch.cuda.Event(blocking=True))
            self._launched[-1].record()
            if len(self._launched) > AHEAD:
                self._launched.popleft().synchronize()

    def read(self) -> Numbers:
        """The numbers, after waiting for all steps."""
        total, finite, last, norm, skipped, _, longest = self._numbers.tolist()
        return Numbers(total / max(1, finite), last, norm, int(skipped), int(longest))

    def waiting(self) -> bool:
        """Whether the GPU has nothing left to do."""
        return not self._launched or self._launched[-1].query()

    def reset(self) -> None:
        self._sum.zero_()
        self._finite.zero_()

    def write_optimizer(self) -> None:
        """Complete the state of the optimizer, before it is saved."""
        self._adamw.write_steps()

    def _step(self) -> None:
        loss, gradient = self._gradient()
        flat, optimizer = self._flat, self._adamw.flat
        flat.grad = gradient
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        norm = torch.linalg.vector_norm(gradient)
        finite = torch.isfinite(loss + norm)
        skip = ~finite
        if self._clip is not None:
            gradient.mul_((self._clip / (norm + 1e-6)).clamp(max=1))  # as clip_grad_norm_
        if self._scaler is not None:
            self._scaler.step(optimizer)
            self._scaler.update()
        else:
            # As a GradScaler does: a fused AdamW changes nothing where this is 1.
            optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
            optimizer.step()
        flat.grad = None
        self._average.lerp_(flat.detach(), self._weight * finite)

        self._sum.add_(torch.where(finite, loss, 0))
        self._finite.add_(finite)
        self._last.copy_(loss)
        self._norm.copy_(norm)
        self._skipped.add_(skip)
        self._in_a_row.add_(1).mul_(skip)
        torch.maximum(self._longest, self._in_a_row, out=self._longest)

    def _gradient(self) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient for the buffer, times the scale of fp16."""
        loss = torch.zeros((), device=self._flat.device)
        gradient: Tensor | None = None
        dtype = self._autocast or self._flat.dtype
        for crops in self._crops:
            lr, hr = finish(crops)
            if not self._channels_last:
                lr, hr = lr.contiguous(), hr.contiguous()
            weights = self._merging(dtype)
            with torch.autocast(
                lr.device.type, self._autocast, self._autocast is not None, cache_enabled=False
            ):
                output = torch.func.functional_call(
                    self._plain, weights, (lr.to(self._flat.dtype),)
                )
            part = self._loss(output, hr) / len(self._crops)
            loss = loss + part.detach()
            scaled = part if self._scaler is None else self._scaler.scale(part)
            (found,) = torch.autograd.grad(scaled, self._flat)
            gradient = found if gradient is None else gradient + found
        assert gradient is not None
        return loss, gradient
