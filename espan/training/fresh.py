"""Weights of what a stage makes anew."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from espan.data import Crops
from espan.training.distillation import SelfDistilled
from espan.training.initialise import initialise, initialise_added
from espan.training.stages import Trained

CROPS = 16  # that the signals are measured on


def whole(trained: Trained, crops: Crops) -> None:
    """A network of the first stage.  A student's tail starts as a copy of its teacher's."""
    images = _images(trained, crops)
    if isinstance(trained, SelfDistilled):
        initialise(trained.teacher, images)
        trained.student_tail.load_state_dict(trained.teacher.tail.state_dict())
    else:
        initialise(trained, images)


def added(trained: Trained, names: Sequence[str], crops: Crops) -> None:
    """What a stage adds to the network before it: blocks are made to pass signals on.

    The rest, an upsampling convolution for another scale, keeps PyTorch's own start.
    """
    network = trained.teacher if isinstance(trained, SelfDistilled) else trained
    initialise_added(network, names, _images(trained, crops))


def _images(trained: Trained, crops: Crops) -> Tensor:
    return crops.batch(0, CROPS)[0].to(next(trained.parameters()).dtype)
