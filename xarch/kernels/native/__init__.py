"""CPU kernels in C++: a plain C interface, compiled on first use, loaded with ctypes. See build.py."""

from __future__ import annotations

from xarch.kernels.native.build import BuildError, declare, forget, kernel, library, why_not

__all__ = ["BuildError", "declare", "forget", "kernel", "library", "why_not"]
