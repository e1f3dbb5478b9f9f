"""Text data and the metrics pass xarch's own kit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

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


class TestPerplexity(MetricConformance):
    metric = "perplexity"
    family = "decoder"


class TestRecall(MetricConformance):
    metric = "recall"
    family = "decoder"
    options: ClassVar[Mapping[str, Any]] = {"distances": [32], "probes": 1}
    needs_teacher = False
