"""Adaptive modules made from the modules of a model.

Legend: D width of the input, R rank, O width of the output.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from xarch import PlanError, Replaceable
from xarch_acm.exits import ExitModule
from xarch_acm.experts import ExpertModule
from xarch_acm.module import AdaptiveModule
from xarch_acm.options import AcmOptions

WIDEST_GATE = 64


def chosen(parts: Sequence[Replaceable], options: AcmOptions, name: str) -> list[Replaceable]:
    """Return the parts that the options name.

    Raises:
        PlanError: the model has none of a kind.
    """
    kinds = {part.kind for part in parts}
    absent = [kind for kind in options.modules if kind not in kinds]
    if absent:
        raise PlanError(
            f"student.options.modules: {name} has no {', '.join(absent)} that can be replaced; it has "
            f"{', '.join(sorted(kinds)) or 'no module that can'}",
            "choose among those, or another teacher",
        )
    return [part for part in parts if part.kind in options.modules]


def adaptive(model: nn.Module, part: Replaceable, options: AcmOptions) -> AdaptiveModule:
    """Return the adaptive module for a part; layers of an MLP are the model's own, those of a linear map are new.

    Raises:
        PlanError: it has fewer hidden units than learners.
    """
    module = model.get_submodule(part.path)
    if part.out:
        into, out = [module.get_submodule(name) for name in part.into], module.get_submodule(part.out)
    else:
        assert isinstance(module, nn.Linear)
        rank = max(1, module.in_features * module.out_features // (module.in_features + module.out_features))
        into = [nn.Linear(module.in_features, rank, bias=False)]
        out = nn.Linear(rank, module.out_features, bias=module.bias is not None)
        into, out = [layer.to(module.weight) for layer in into], out.to(module.weight)
    layers = [layer for layer in into if isinstance(layer, nn.Linear)]
    assert isinstance(out, nn.Linear)
    if out.in_features < options.learners:
        raise PlanError(
            f"student.options.learners: {part.path} has {out.in_features} hidden units for {options.learners} learners",
            f"--set student.options.learners={max(2, out.in_features)}",
        )
    positions = part.positions if options.places and options.gates == "estimate" else 0
    if not options.gate_share and not positions:
        raise PlanError(
            f"student.options.gate_share: 0 is for gates that know places only, but {part.path} has none to know",
            "--set student.options.gate_share=0.01; or student.options.gates=fixed, a number per module",
        )
    width = options.gate_share * (len(layers) * layers[0].in_features + out.out_features) * out.in_features
    form = {"experts": ExpertModule, "exits": ExitModule}.get(options.gates, AdaptiveModule)
    made = form(
        layers,
        part.activation,
        out,
        function=part.function,
        learners=options.learners,
        least=0 if form is ExitModule or (part.residual and form is not ExpertModule) else 1,
        gate_width=max(2, min(WIDEST_GATE, round(width / layers[0].in_features))) if options.gate_share else 0,
        positions=positions,
        temperature=options.temperature,
        estimates=options.gates == "estimate",
        task_gradient=options.task_gradient,
    )
    if isinstance(made, ExitModule):
        made.kind = part.kind
    if options.gates == "random":
        nn.init.normal_(made.gate.out.weight)
        nn.init.zeros_(made.gate.out.bias)
    return made


def check_budgets(modules: Collection[AdaptiveModule], options: AcmOptions) -> None:
    """Check that there is something to choose at every budget.

    Raises:
        PlanError: gates and the learners that always run take more.
    """
    gates = 0.0 if options.gates in ("fixed", "exits") else sum(m.gate_cost for m in modules)
    whole = sum(m.cost * m.learners for m in modules)
    always = (gates + sum(m.least * m.cost for m in modules)) / whole
    share = min([options.budget, *options.budgets])
    if share >= always:
        return
    able = math.ceil(100 * always) / 100
    name, enough = "budget", str(able)
    if share != options.budget:
        name, enough = "budgets", str(sorted({max(b, able) for b in options.budgets})).replace(" ", "")
    raise PlanError(
        f"student.options.{name}: {share:g} of the learners' multiply-adds is less than the {always:.3f} that gates "
        "take, and the first learner where one must run",
        f"--set student.options.{name}={enough}; or more student.options.learners",
    )


def renamed(part: Replaceable, name: str) -> tuple[str, ...]:
    """Return the tensors of the adaptive module that a tensor of the part becomes; names begin with the path."""
    rest = name.removeprefix(f"{part.path}.")
    if not part.out:
        return (f"{part.path}.out.bias",) if rest == "bias" else tuple(f"{part.path}.{n}.weight" for n in FACTORS)
    layer, _, leaf = rest.rpartition(".")
    place = "out" if layer == part.out else f"into.{part.into.index(layer)}"
    return (f"{part.path}.{place}.{leaf}",)


FACTORS = ("into.0", "out")
"""The two layers of a linear map as learners."""


def factors(weight_OD: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (into [R, D], out [O, R]) whose product is nearest to a matrix among those of this rank; the hidden units
    are in the order of what they contribute."""
    left, scale, right = torch.linalg.svd(weight_OD.double(), full_matrices=False)
    root = scale[:rank].sqrt()
    return (root[:, None] * right[:rank]).to(weight_OD), (left[:, :rank] * root).to(weight_OD)


def left_out(weight_OD: Tensor, rank: int) -> float:
    """Return the share of a matrix's squares that the nearest one of this rank does not hold."""
    squares = torch.linalg.svdvals(weight_OD.float()).double().square()
    return float(squares[rank:].sum() / squares.sum().clamp_min(1e-30))
