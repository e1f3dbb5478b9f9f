"""Compiling what a Triton launch would run, for a GPU that is not here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch


@dataclass(frozen=True)
class Compiled:
    """One kernel as it was launched."""

    name: str
    ptx: str
    shared_bytes: int
    arch: int
    warps: int


_NAMES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
    torch.uint8: "*u8",
}


def compile_launches(call: Callable[[], Any], arch: int) -> list[Compiled]:
    """Run ``call`` on CPU tensors with every Triton launch replaced by a compilation for ``sm_<arch>``.

    Arguments are specialised as a launch would: on divisibility by 16, and integers that are 1 become constants.
    What the kernels would have computed stays unwritten.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    found: dict[Any, Compiled] = {}

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages") if k in kwargs}
        values = dict(zip(self.arg_names, args, strict=False)) | kwargs
        assert set(values) == set(self.arg_names), f"{self.__name__}: {set(values) ^ set(self.arg_names)}"
        signature, constants, attributes = {}, {}, {}
        for index, parameter in enumerate(self.params):
            value = values[parameter.name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[parameter.name], constants[(index,)] = "constexpr", value
                continue
            if isinstance(value, torch.Tensor):
                signature[parameter.name], aligned = _NAMES[value.dtype], value.data_ptr() % 16 == 0
            elif isinstance(value, int):
                signature[parameter.name], aligned = "i32" if abs(value) < 2**31 else "i64", value % 16 == 0
            else:
                signature[parameter.name], aligned = "fp32", False
            if aligned:
                attributes[(index,)] = [["tt.divisibility", 16]]
        key = (self.__name__, str(signature), str(constants), str(options))
        if key in found:
            return
        source = ASTSource(fn=self, signature=signature, constexprs=constants, attrs=attributes)
        kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        found[key] = Compiled(self.__name__, kernel.asm["ptx"], kernel.metadata.shared, arch, kernel.metadata.num_warps)

    with mock.patch.object(JITFunction, "run", compile_only):
        call()
    return list(found.values())
