"""Text: streamed, packed token batches from files (``text:``), and metrics of language models."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register the data provider and the metrics without heavy imports."""
    registry.data(
        "text",
        load="xarch_text.provider:TextData",
        summary="packed tokens from text:FILE, text:DIR, 'text:GLOB' or text:python-stdlib, -topics, -mixed",
        needs=("torch", "pydantic"),
    )
    registry.data(
        "pairs",
        load="xarch_text.pairs:PairData",
        summary="a source and a target text each, from pairs:FILE.jsonl, pairs:FOLDER or pairs:python-docstrings",
        needs=("torch", "pydantic"),
    )
    registry.data(
        "denoising",
        load="xarch_text.denoising:DenoisingData",
        summary="running text as pairs: prefixes and how they go on, or a UL2 mixture; references as for text:",
        needs=("torch", "pydantic"),
    )
    registry.metric(
        "perplexity",
        load="xarch_text.metric:Perplexity",
        summary="perplexity ratio, KL to the teacher and top-1 agreement on held-out text",
        accepts=["decoder"],
        needs=("torch",),
    )
    registry.metric(
        "recall",
        load="xarch_text.recall:Recall",
        summary="share of passages and of random tokens that are still known some distance later",
        accepts=["decoder"],
        needs=("torch",),
    )
    registry.report(
        "domains",
        load="xarch_text.report:sections",
        summary="figures of perplexity by domain",
        accepts=["decoder"],
    )
