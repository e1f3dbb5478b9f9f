"""Transformer to constant state without training: an exact window and merged slots, sized per key/value head."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the target, the allocation stage and the recipes."""
    registry.target(
        "memory",
        load="xarch_memory.target:MemoryTarget",
        accepts=["decoder"],
        produces="decoder",
        recipes=["slot-memory"],
        profiles=["cpu", "cpu-int8", "cpu-int4", "openvino", "web", "npu", "npu-fp16", "npu-int8"],
        summary="decoder whose attention reads first tokens, a window and merged slots instead of the whole past",
    )
    registry.stage(
        "allocate",
        load="xarch_memory.allocate:Allocate",
        summary="divide a budget of state bytes among the key/value heads by what each loses",
    )
    registry.method(
        "slot-memory",
        load="xarch_memory:recipes/slot-memory.yaml",
        families=["decoder"],
        summary="transformer to constant state without training, in about a minute a model",
    )
    registry.recipe(
        "smollm2-memory",
        load="xarch_memory:recipes/smollm2-memory.yaml",
        summary="demo: SmolLM2-135M with all 30 layers in 168 kB of state each, without training",
    )
