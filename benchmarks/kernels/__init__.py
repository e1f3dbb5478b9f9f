"""Time and peak memory of the kernels against peers from package registries. See :mod:`benchmarks.kernels.__main__`."""
