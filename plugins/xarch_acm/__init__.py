"""Adaptive computation modules: width chosen for every token, in any model with replaceable parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xarch import hookimpl

PAPER = "arXiv:2312.10193"
DIGITS = Path(__file__).parent / "recipes" / "digits-vit.safetensors"
"""Weights that the recipe `digits-vit-teacher` made."""


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the target, its stages, objectives and recipes."""
    families = ["decoder", "image"]
    registry.target(
        "acm",
        load="xarch_acm.target:AcmTarget",
        accepts=families,
        recipes=["acm", "acm-classify", "acm-fixed", "acm-experts", "acm-exits"],
        profiles=["cpu", "cpu-int8", "cpu-int4", "openvino", "web", "npu", "npu-fp16", "npu-int8"],
        summary="the teacher itself, with modules that run as many of their learners as a gate chooses for every token",
    )
    for name, load, summary in (
        ("acm-threshold", "threshold:Threshold", "from when on a further learner helps too little, for a budget"),
        ("acm-tables", "tables:Tables", "shift of gates and fixed numbers of learners for every budget"),
    ):
        registry.stage(name, load=f"xarch_acm.{load}", summary=summary)
    every = "choices of all gates"
    for name, load, compares, units, summary in (
        ("acm-prefixes", "prefixes:Prefixes", "prefixes with an output", "squared value", "every number of learners"),
        (
            "acm-estimates",
            "estimates:Estimates",
            "two sets of choices",
            "prices of a learner",
            "expected losses of gates",
        ),
        ("acm-budget", "budget:Budget", every, "share", "the share of learners that runs, on average"),
        ("acm-entropy", "entropy:Entropy", every, "share", "different choices within a sample"),
        ("acm-spread", "spread:Spread", every, "share", "different shares for different samples"),
    ):
        load = f"xarch_acm.objectives.{load}"
        registry.objective(name, load=load, compares=compares, units=units, paper=PAPER, summary=summary)
    registry.report("acm", load="xarch_acm.report:sections", summary="quality against the learners that ran")
    registry.method(
        "acm",
        load="xarch_acm:recipes/acm.yaml",
        families=families,
        summary="sort, distil every prefix, train gates, then all under a budget",
    )
    registry.teacher(
        "digits-vit",
        ref=f"timm:vit_tiny_patch16_224?checkpoint={DIGITS}&size=16&channels=1&patch_size=4&depth=4&embed_dim=64"
        "&num_heads=4",
        summary="small ViT for the digits of scikit-learn, 93 % right",
    )
    for name, summary in (
        ("acm-classify", "acm with the paper's gates, which choose among numbers of learners"),
        ("acm-fixed", "control of acm: the same learners and training, a fixed number per module, no gates"),
        ("acm-experts", "rival of acm: hidden units as experts, routers that expect the most active (MoEfication)"),
        ("acm-exits", "rival of acm: samples that are sure of their answer leave early (early exit)"),
        ("digits-vit-teacher", "makes the teacher of acm-demo"),
        ("acm-smollm2", "demo: SmolLM2-135M with MLPs that run half of their learners, chosen for every token"),
        ("acm-demo", "demo: a ViT of digits with MLPs that run half of their learners, chosen for every token"),
    ):
        registry.recipe(name, load=f"xarch_acm:recipes/{name}.yaml", summary=summary)
