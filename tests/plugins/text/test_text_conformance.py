"""Text data and the metrics pass xarch's own kit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from xarch.testing import DataConformance, MetricConformance


class TestText(DataConformance):
    options: ClassVar[Mapping[str, Any]] = {"tokenizer": "bytes"}
    sample: ClassVar[Mapping[str, Any]] = {"length": 32}
    workers = False

    def make_ref(self, folder: Path) -> str:
        # Every sentence once: equal samples of two splits would otherwise be no fault.
        text = " ".join(f"Sentence {i} says that {i * 7919 % 10007} is not {i * 104729 % 99991}." for i in range(2000))
        (folder / "text.txt").write_text(text, encoding="utf-8")
        return f"text:{folder / 'text.txt'}"


class TestPairs(DataConformance):
    options: ClassVar[Mapping[str, Any]] = {"tokenizer": "bytes"}
    sample: ClassVar[Mapping[str, Any]] = {"source": 24, "target": 12}
    workers = False

    def make_ref(self, folder: Path) -> str:
        pairs = ({"source": f"What is {i} plus {i % 7}?", "target": f"It is {i + i % 7}."} for i in range(400))
        (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        return f"pairs:{folder / 'pairs.jsonl'}"


@pytest.mark.slow
class TestDenoising(TestText):
    options: ClassVar[Mapping[str, Any]] = {"tokenizer": "bytes", "mixture": "ul2", "marker": 0}
    sample: ClassVar[Mapping[str, Any]] = {"source": 16, "target": 16}

    def make_ref(self, folder: Path) -> str:
        return super().make_ref(folder).replace("text:", "denoising:", 1)


class TestPerplexity(MetricConformance):
    metric = "perplexity"
    family = "decoder"


class TestRecall(MetricConformance):
    metric = "recall"
    family = "decoder"
    options: ClassVar[Mapping[str, Any]] = {"distances": [32], "probes": 1}
    needs_teacher = False
