"""Runs an engine under CUDA graphs, one for each image shape."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch
from torch import Tensor, nn

# Each graph holds the feature maps of its size.  At 510x339 with 32 channels in fp16, these are at
# most four of 11 MB and an output of 17 MB (calculated, not measured).
MAX_GRAPHS = 8
_CAPTURING = threading.Lock()  # PyTorch allows one capture at a time in a process


class Graphed(nn.Module):
    """Captures a graph for the first image of each shape and dtype, and replays it for later ones.

    It keeps up to `MAX_GRAPHS` graphs and drops the least recently used one.  Calls do not overlap:
    threads wait for each other, and a stream waits for the stream of the previous call.
    """

    def __init__(self, engine: nn.Module) -> None:
        super().__init__()
        self.engine = engine
        self._graphs: OrderedDict[object, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]]
        self._graphs = OrderedDict()
        self._lock = threading.Lock()
        self._done: torch.cuda.Event | None = None

    def forward(self, image: Tensor, flag: Tensor) -> Tensor:
        key = (image.shape, image.stride(), image.dtype)
        with self._lock, torch.cuda.device(image.device):
            if self._done is not None:
                self._done.wait()  # another stream may still use the static image and result
            if key not in self._graphs:
                self._graphs[key] = self._capture(image, flag)
                if len(self._graphs) > MAX_GRAPHS:
                    if self._done is not None:
                        self._done.synchronize()  # others may reuse the memory of the dropped graph
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            graph, static_image, static_result = self._graphs[key]
            static_image.copy_(image)
            graph.replay()
            result = static_result.clone()
            self._done = torch.cuda.Event()
            self._done.record()
            return result

    def _capture(self, image: Tensor, flag: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        with torch.inference_mode(False):  # inference tensors cannot be written outside that mode
            static_image = torch.empty_like(image)
        static_image.copy_(image)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.engine(static_image, flag)  # one-time initialisation must not be captured
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile, which "global" would not allow.  The stream is given
        # because PyTorch's default is one for the process, on the device of the first capture.
        with (
            _CAPTURING,
            torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
        ):
            result = self.engine(static_image, flag)
        return graph, static_image, result
