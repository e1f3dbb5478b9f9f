"""The core plugin: what the engine itself brings, registered like any other plugin's."""

from __future__ import annotations

from xarch.registry.declare import Declarations
from xarch.registry.hooks import hookimpl


@hookimpl
def xarch_register(registry: Declarations) -> None:
    """Stage kinds, general objectives, the CPU export profile, and students of earlier runs as teachers."""
    registry.stage("gradient", load="xarch.engine.gradient:Gradient", summary="match taps by gradient descent")
    registry.stage("closed_form", load="xarch.engine.closed_form:ClosedForm", summary="solve each site, no gradient")
    registry.objective("l2", load="xarch.matching.objectives.tensors:L2", summary="Euclidean distance per position")
    registry.objective(
        "relative_l2", load="xarch.matching.objectives.tensors:RelativeL2", summary="L2 over the teacher's norm"
    )
    registry.objective("mse", load="xarch.matching.objectives.tensors:MSE", summary="mean square per element")
    registry.export("cpu", load="xarch.export.profiles:cpu", summary="onnxruntime on a CPU")
    registry.export("npu", load="xarch.export.profiles:npu", summary="accelerators: static shapes, opset 17, float32")
    registry.export("npu-fp16", load="xarch.export.profiles:npu_fp16", summary="as npu, matrix products in float16")
    registry.export("npu-int8", load="xarch.export.profiles:npu_int8", summary="as npu, calibrated to 8 bits")
    registry.source("run", load="xarch.run.run_source:RunSource", produces="*", summary="the student of an earlier run")
