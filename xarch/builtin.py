"""The core plugin: built-in adapters, registered like those of any other plugin."""

from __future__ import annotations

from xarch.registry.declare import Declarations
from xarch.registry.hooks import hookimpl

DENSE, CLASSES = "values of one shape, any dense layout", "logits with logits"
OBJECTIVES = (
    ("mse", "distances:MSE", DENSE, "squared value", "", "mean square, of values as they are or normalised"),
    ("l2", "distances:L2", DENSE, "norm/position", "arXiv:2408.10189", "Euclidean distance per position"),
    (
        "relative-l2",
        "distances:RelativeL2",
        DENSE,
        "fraction of the right side's norm",
        "",
        "as l2, over the right side's norm",
    ),
    ("cosine", "distances:Cosine", DENSE, "1 - cosine", "", "one minus the cosine per position"),
    ("huber", "distances:Huber", DENSE, "squared value", "", "square below delta, straight above"),
    ("smooth-l1", "distances:SmoothL1", DENSE, "absolute value", "", "absolute error, square below beta"),
    ("kl", "distributions:KL", CLASSES, "nats/position", "arXiv:1503.02531", "divergence between distributions"),
    ("cross-entropy", "labels:CrossEntropy", "logits with labels", "nats/position", "", "loss on given labels"),
    ("hard-label", "labels:HardLabel", CLASSES, "nats/position", "arXiv:2012.12877", "loss on the likeliest class"),
    ("correlation", "correlation:Correlation", DENSE, "1 - correlation", "arXiv:2205.10536", "over features or batch"),
    ("fsp", "flow:FSP", "two or more joined taps", "squared value", "CVPR 2017", "flow between places"),
)
CONNECTORS = (
    ("linear", "Linear", "to the right side's width at every position"),
    ("conv1x1", "Conv1x1", "the same over channels, with batch normalisation if asked for"),
    ("bridge", "Bridge", "linear, then to the right side's positions by interpolation"),
    ("pool", "Pool", "mean over positions, then linear"),
    ("exit", "Exit", "mean over positions, then a small classifier"),
)
BATCH_STEPS = (
    ("mixup", "Mixup", "mixes pairs of samples and their labels"),
    ("teacher-labels", "TeacherLabels", "stores what a teacher says under a key"),
    ("shuffle-teacher", "ShuffleTeacher", "shows teachers another sample of the batch, a control"),
    ("repeat", "Repeat", "every sample several times, with a mask for each copy"),
)
OPTIMISERS = (
    ("adamw", "AdamWKind", "Adam with decoupled weight decay"),
    ("sgd", "SGDKind", "gradient descent with momentum"),
    ("lamb", "LambKind", "Adam whose steps have the size of each tensor, for large batches"),
    ("muon", "MuonKind", "orthogonalised momentum for matrices of layers, AdamW for the rest"),
)
SCHEDULES = (
    ("wsd", "WarmupStableDecay", "warms up, stays, falls linearly at the end"),
    ("cosine", "Cosine", "half a cosine"),
    ("constant", "Constant", "stays"),
    ("linear", "Linear", "a straight line"),
    ("polynomial", "Polynomial", "a power of what is left"),
    ("step", "Step", "drops at milestones"),
)


@hookimpl
def xarch_register(registry: Declarations) -> None:
    """Declare the built-in vocabulary, export profiles, and students of earlier runs as teachers."""
    registry.stage("gradient", load="xarch.engine.gradient:Gradient", summary="match taps by gradient descent")
    registry.stage("closed_form", load="xarch.engine.closed_form:ClosedForm", summary="solve each site, no gradient")
    for name, load, compares, units, paper, summary in OBJECTIVES:
        load = f"xarch.matching.objectives.{load}"
        registry.objective(name, load=load, compares=compares, units=units, paper=paper, summary=summary)
    for name, attribute, summary in CONNECTORS:
        registry.connector(name, load=f"xarch.matching.connectors:{attribute}", summary=summary)
    for name, attribute, summary in BATCH_STEPS:
        registry.batch_step(name, load=f"xarch.matching.batch_steps:{attribute}", summary=summary)
    for name, attribute, summary in OPTIMISERS:
        registry.optimiser(name, load=f"xarch.optim.kinds:{attribute}", summary=summary)
    registry.wrapper("sam", load="xarch.optim.sam:SAM", summary="gradient of a nearby place where the loss is higher")
    for name, attribute, summary in SCHEDULES:
        registry.schedule(name, load=f"xarch.optim.schedules:{attribute}", summary=summary)
    registry.export("cpu", load="xarch.export.profiles:cpu", summary="onnxruntime on a CPU")
    registry.export("cpu-int8", load="xarch.export.profiles:cpu_int8", summary="as cpu, products in 8 bits")
    registry.export("cpu-int4", load="xarch.export.profiles:cpu_int4", summary="as cpu, weights in 4 bits (language)")
    registry.export("openvino", load="xarch.export.profiles:openvino", summary="OpenVINO, float32")
    registry.export("web", load="xarch.export.profiles:web", summary="onnxruntime-web, opset 17, float32")
    registry.export("npu", load="xarch.export.profiles:npu", summary="accelerators: static shapes, opset 17, float32")
    registry.export("npu-fp16", load="xarch.export.profiles:npu_fp16", summary="as npu, matrix products in float16")
    registry.export("npu-int8", load="xarch.export.profiles:npu_int8", summary="as npu, calibrated to 8 bits")
    registry.source("run", load="xarch.run.run_source:RunSource", produces="*", summary="the student of an earlier run")
