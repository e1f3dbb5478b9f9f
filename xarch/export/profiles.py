"""Tested deployment profiles. A profile is data; add one as a :class:`Profile` here or in a plugin."""

from __future__ import annotations

from dataclasses import replace

from xarch.contracts.export import Profile
from xarch.export.blocks import BLOCK_OPS
from xarch.export.skip_norm import SKIP_NORM

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
"""Operators that run a subgraph per step: slower than the same arithmetic unrolled, and absent from most
accelerators."""

NPU_OPS = frozenset({
    "Abs", "Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Constant", "Conv",
    "ConvTranspose", "DepthToSpace", "DequantizeLinear", "Div", "Elu", "Equal", "Exp", "Expand", "Flatten", "Floor",
    "Gather", "GatherElements", "Gemm", "GlobalAveragePool", "Greater", "GreaterOrEqual", "GridSample", "HardSigmoid",
    "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log",
    "LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "Or", "PRelu", "Pad", "Pow",
    "QuantizeLinear", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize",
    "Round", "Sigmoid", "Sign", "Slice", "Softmax", "Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub",
    "Tanh", "Tile", "TopK", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators that the compilers of Qualcomm's and Intel's accelerators list for opset 17 or below, except those that
others lack or compute in half precision only: Sin and Cos of large angles, CumSum, bitwise and data-dependent ones."""

RUNTIME_OPS = frozenset({
    "com.microsoft::CausalConvWithState", "com.microsoft::GroupQueryAttention", "com.microsoft::LinearAttention",
    "com.microsoft::RotaryEmbedding", SKIP_NORM,
})  # fmt: skip
"""Operators of onnxruntime's own that graphs for it may contain."""

cpu = Profile(
    name="cpu",
    provider="CPUExecutionProvider",
    # the version torch's exporter writes without conversion, and onnxruntime supports since 1.14
    max_opset=18,
    max_ir=8,
    forbidden_ops=CONTROL_FLOW,
    # onnxruntime gathers rows of a grid three to seven times faster than its GridSample reads channels one by one
    # and its attention writes a state in place
    lowerings=("gather", "runtime"),
    runtime_ops=RUNTIME_OPS,
    summary="onnxruntime on a CPU, float32",
)

cpu_int8 = replace(
    cpu,
    name="cpu-int8",
    dtype="int8",
    integers=("activations", "dynamic"),
    runtime_ops=RUNTIME_OPS | BLOCK_OPS,
    summary="like cpu, weights and inputs of products in 8 bits, calibrated or measured; language: weights only",
)

cpu_int4 = replace(
    cpu,
    name="cpu-int4",
    dtype="int4",
    runtime_ops=RUNTIME_OPS | BLOCK_OPS,
    summary="like cpu, weights of products in 4 bits in blocks of 32, in 8 where these cost too much; tables in 8",
)

openvino = replace(
    cpu,
    name="openvino",
    runtime_ops=frozenset(),
    # OpenVINO reads every operator of opset 18 that these graphs need; its GridSample and GatherND are as fast
    lowerings=(),
    summary="OpenVINO on CPUs and integrated graphics, float32",
)

web = replace(
    cpu,
    name="web",
    runtime_ops=frozenset(),
    lowerings=("gather",),
    max_opset=17,
    summary="onnxruntime-web (WebAssembly), float32: opset 17, standard operators",
)

npu = Profile(
    name="npu",
    # the results of the graphs can be checked without an accelerator
    provider="CPUExecutionProvider",
    max_opset=17,
    max_ir=8,
    static=True,
    allowed_ops=NPU_OPS,
    forbidden_ops=CONTROL_FLOW,
    max_rank=4,
    index_dtype="int32",
    summary="accelerators: static shapes, opset 17, a list of operators, 32-bit indices; float32",
)

npu_fp16 = replace(npu, name="npu-fp16", dtype="float16", summary="like npu, weights and products in float16")

npu_int8 = replace(
    npu,
    name="npu-int8",
    dtype="int8",
    summary="like npu, weights and inputs of products in calibrated 8 bits",
)
