"""Weights and feature maps in the layouts that the kernels read.

* :mod:`~espan_kernels.packing.feature_maps`: feature maps of `head`, `spab` and `tail`.
* :mod:`~espan_kernels.packing.cuda_fragments`: their weights, for CUDA and Triton.
* :mod:`~espan_kernels.packing.cpu_winograd`: weights of `network`, for every CPU path.
* :mod:`~espan_kernels.packing.cpu_amx_tiles`: the same, for the matrix unit of the path ``amx``.
"""
