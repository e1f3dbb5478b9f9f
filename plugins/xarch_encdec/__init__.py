"""Decoders to encoder-decoders: facts, model, target, methods, metric, export and test fixtures of the family."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register family, target, metric, batch steps and methods."""
    registry.family("encdec", load="xarch_encdec.family:EncDecFamily", summary="models that read a source and answer")
    registry.target(
        "encdec",
        load="xarch_encdec.target:EncDecTarget",
        accepts=["decoder"],
        produces="encdec",
        recipes=["encdec", "encdec-drop"],
        profiles=["cpu", "cpu-int8", "cpu-int4", "openvino", "web", "npu", "npu-fp16", "npu-int8"],
        summary="encoder and decoder of a decoder's own layers: split, strided, copied, or by a budget",
    )
    registry.metric(
        "answers",
        load="xarch_encdec.metric:Answers",
        accepts=["encdec"],
        summary="loss on held-out answers, KL to the teacher and top-1 agreement",
        needs=("torch",),
    )
    registry.metric(
        "written-answers",
        load="xarch_encdec.written:WrittenAnswers",
        accepts=["encdec"],
        summary="answers, and exact match and ROUGE-L of what the models write",
        extra="answers",
        needs=("torch", "rouge_score"),
    )
    registry.batch_step(
        "open-encoder",
        load="xarch_encdec.anneal:OpenEncoder",
        summary="open an encoder that begins as a causal decoder, as a schedule says",
    )
    registry.batch_step(
        "write-answers",
        load="xarch_encdec.on_policy:WriteAnswers",
        summary="replace answers with samples of the student",
    )
    registry.stage(
        "drop_layers",
        load="xarch_encdec.drop:DropLayers",
        summary="choose the decoder layers that cost least to leave out",
    )
    registry.recipe(
        "encdec-drop",
        load="xarch_encdec:recipes/encdec-drop.yaml",
        summary="encdec for `plan: drop`: the decoder's layers are chosen first",
    )
    registry.recipe(
        "encdec-demo",
        load="xarch_encdec:recipes/encdec-demo.yaml",
        summary="demo: SmolLM2-135M reads a function once, with 20 of its layers, and writes its docstring",
    )
    for name, summary in (
        ("encdec", "decoder to encoder-decoder: what reads the source, then encoder, then everything"),
        ("encdec-ce", "the control of encdec: answers of the data, no teacher"),
        ("encdec-equal", "decoder to encoder-decoder from a start that is the teacher"),
    ):
        registry.method(name, load=f"xarch_encdec:recipes/{name}.yaml", families=["encdec"], summary=summary)
