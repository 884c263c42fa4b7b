"""The quality of a network's output."""

from espan.evaluation.metrics import luma, psnr, ssim

__all__ = ["luma", "psnr", "ssim"]
