"""Losses between images, and between a student and its teacher."""

from espan.losses.distillation import self_distillation
from espan.losses.loss import Loss

__all__ = ["Loss", "self_distillation"]
