"""The tables of DeiT-LT's page are those of the published studies."""

from __future__ import annotations

import re

import pytest

from benchmarks import store
from benchmarks.quality import deit_lt
from xarch_methods import long_tail

README = store.ROOT / "plugins" / "xarch_methods" / "deit_lt" / "README.md"


def test_the_page_says_what_the_published_studies_say() -> None:
    assert deit_lt.tables() in README.read_text(encoding="utf-8"), "run `python benchmarks/quality/deit_lt.py`"


def test_the_rule_of_the_plan_has_the_published_gains() -> None:
    def said(arm: str, metric: str, rival: str, *names: str) -> list[str]:
        gains = (deit_lt.Study(f"deit_lt_{name}").gains(arm, metric, rival) for name in names)
        return [f"{sum(gain) / len(gain):+.1f}" for gain in gains]

    over_weights = said("deit-lt", "recall.tail", "two-token-drw", "fashion", "digits", "cifar100", "openclipart")
    assert re.findall(r"[+-]\d+[.]\d", long_tail.MEASURED) == over_weights
    tail, head = (said("mdcs", metric, "deit-lt", "fashion", "cifar100") for metric in ("recall.tail", "recall.head"))
    assert re.findall(r"[+-]\d+[.]\d", long_tail.RIVAL) == [tail[0], head[0], tail[1], head[1]]


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([], "not run"),
        ([2.5], "+2.5 (1)"),
        ([1.0, 3.0, 2.0], "+2.0, least +1.0, p 0.074 (3)"),
    ],
)
def test_differences_name_the_least_and_the_seeds(gains: list[float], said: str) -> None:
    assert deit_lt.told(gains) == said
