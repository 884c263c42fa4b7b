"""Upscaling video files with PyAV: `espan video`."""
