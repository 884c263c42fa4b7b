"""What training minimises: losses between images, and the student's distance from its teacher."""

from espan.losses.distillation import self_distillation
from espan.losses.loss import Loss

__all__ = ["Loss", "self_distillation"]
