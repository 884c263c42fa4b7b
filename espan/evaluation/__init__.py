"""How good a network's output is."""

from espan.evaluation.metrics import luma, psnr, ssim

__all__ = ["luma", "psnr", "ssim"]
