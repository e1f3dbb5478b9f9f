"""Transformer to state-space model after MOHAWK (arXiv 2408.10189): recurrent students and their recipes."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the targets, the objective, the layer probe and the recipes."""
    # Each was passed by a small student. Blocks of 4 bits change the states of `mamba2` too much; with 8-bit inputs of
    # products, too, one of its predictions in sixteen is another one.
    floats, static = ["cpu", "cpu-int8", "openvino", "web"], ["npu", "npu-fp16"]
    every = [*floats, "cpu-int4", *static, "npu-int8"]
    for name, attribute, profiles, summary in (
        (
            "dm2",
            "DM2Target",
            every,
            "decoder with Discrete Mamba-2 mixers in place of attention, in all layers or in some",
        ),
        (
            "gdn",
            "GDNTarget",
            every,
            "decoder with Gated DeltaNet in place of attention, one state per key/value head",
        ),
        (
            "mamba1",
            "Mamba1Target",
            every,
            "decoder with Mamba in place of attention, in the mapping of MambaInLlama",
        ),
        ("mamba2", "Mamba2Target", [*floats, *static], "decoder with Mamba-2 as published in place of attention"),
    ):
        registry.target(
            name,
            load=f"xarch_mohawk.target:{attribute}",
            accepts=["decoder"],
            produces="decoder",
            recipes=["mohawk"],
            profiles=profiles,
            summary=summary,
        )
    registry.objective(
        "frobenius",
        load="xarch_mohawk.objectives:Frobenius",
        compares="state-space with attention factors",
        units="norm/head",
        paper="arXiv:2408.10189",
        summary="distance of mixing matrices",
    )
    registry.method(
        "mohawk",
        load="xarch_mohawk:recipes/mohawk.yaml",
        families=["decoder"],
        summary="transformer to DM2 with closed-form initialisation, for small teachers; minutes on a CPU",
    )
    registry.recipe(
        "mohawk-paper",
        load="xarch_mohawk:recipes/mohawk-paper.yaml",
        summary="transformer to DM2 with the token budgets of the MOHAWK paper (3 billion tokens)",
    )
    registry.recipe(
        "smollm2-hybrid",
        load="xarch_mohawk:recipes/smollm2-hybrid.yaml",
        summary="demo: SmolLM2-135M with 10 of 30 attention layers replaced, about 25 minutes on one core",
    )
