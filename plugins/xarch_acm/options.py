"""Options of the target ``acm`` and of its export."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from xarch import Options

Share = Annotated[float, Field(gt=0, le=1)]
Kind = Literal["mlp", "q", "k", "v", "qkv", "o"]


class AcmOptions(Options):
    """Options of the target ``acm``."""

    modules: list[Kind] = Field(
        ["mlp"],
        min_length=1,
        description="kinds of modules to replace: mlp, and the projections q, k, v, qkv (three in one) and o",
    )
    learners: int = Field(4, ge=2, le=64, description="learners N of a module")
    budget: Share = Field(0.5, description="share of the learners' multiply-adds that gates and what they run take")
    budgets: list[Share] = Field(
        [0.25, 0.5, 0.75],
        max_length=32,
        description="budgets of the operating points: gates shifted to each, and a fixed number of learners per module",
    )
    sampled_budgets: bool = Field(
        False,
        description="every step of the last stage runs at one of the budgets, drawn by chance, so that one student is "
        "trained for all of them; false: at its own",
    )
    gate_share: float = Field(
        0.01,
        ge=0,
        le=0.5,
        description="multiply-adds of a gate's first layer, as a share of its module's; 0: gates know places only, see "
        "`places`: a number of learners for every module and place, whatever is in the sample",
    )
    gates: Literal["estimate", "classify", "fixed", "random", "experts", "exits"] = Field(
        "estimate",
        description="`estimate`: gates tell what the teacher's answer loses with each number of learners, and the "
        "cheapest at the price of a budget runs; `classify`: they choose among the numbers, and learn first where the "
        "distance to the module's output falls too little, as in the paper. Four controls: `fixed`: a number per "
        "module, no gates; `random`: gates that choose among the numbers by chance and learn nothing; `experts`: as "
        "many learners at every position, those that a router expects to be most active (MoEfication); `exits`: all "
        "learners until a sample, or a position of text, is sure enough of its answer, and none after (early exit)",
    )
    places: bool = Field(
        True,
        description="gates that estimate also know the place in the sample, where every sample has as many (images of "
        "fixed size): what each place adds is learned, and takes no multiply-adds",
    )
    temperature: float = Field(
        0.0, ge=0, description="of the softmax over gates that are sampled in training; 0: they are not sampled"
    )
    task_gradient: bool = Field(
        True,
        description="whether the gradient of what the model answers reaches the gates; false: only that of terms on "
        "their choices, as in the reference code",
    )
    label_offset: Literal[0, -1] = Field(
        -1,
        description="gates that classify learn the first learner that helps too little (0) or its predecessor (-1)",
    )


class AcmExport(Options):
    """Export options of the target ``acm``."""

    mode: Literal["auto", "masked", "static_budget", "dynamic", "bucketed"] = Field(
        "auto",
        description="dynamic: every learner runs on the positions that chose it; static_budget: a fixed number of "
        "learners per module, without gates; bucketed: every learner has room for a fixed share of the "
        "positions, those that want it most; masked: gates choose, but all learners are computed, a reference of "
        "quality that is never faster; auto: dynamic, or static_budget where shapes are static",
    )
    budget: Share | None = Field(
        None,
        description="one of the student's budgets; default: with gates as they were trained, with fixed learners the "
        "trained budget, or the one nearest to it",
    )
    budget_input: bool = Field(
        False,
        description="modes dynamic and masked: the graph takes the budget as its input `budget` [1], and one file "
        "serves every budget from the least to the largest of the student's; fixed numbers of learners need masked",
    )
    every_point: bool = Field(
        False,
        description="also a graph for every other operating point that the profile supports, named GRAPH-POINT: with "
        "`evaluate.exports` each file is evaluated",
    )
    graph: dict[str, Any] = Field(
        default_factory=dict, description="export options of the model around the modules, e.g. {prefill: [64]}"
    )
