"""The memory layouts of weights and feature maps.

* :mod:`~espan_kernels.packing.feature_maps`: feature maps of `head`, `spab` and `tail`.
* :mod:`~espan_kernels.packing.cuda_fragments`: weights of these ops, for CUDA and Triton.
* :mod:`~espan_kernels.packing.cpu_winograd`: weights of `network`, for every CPU path.
* :mod:`~espan_kernels.packing.cpu_winograd_bf16`: weights of `network` in bf16, for the path
  ``avx512`` on processors with avx512_bf16.
* :mod:`~espan_kernels.packing.cpu_amx_tiles`: weights of `network`, for the matrix unit of the path
  ``amx``.
"""
