"""Every objective of the package passes the kit: a table of the taps that each compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch

from xarch import Tap
from xarch.registry.loader import get_registry
from xarch.testing import ObjectiveConformance

CLASSES = 5
LOGITS = Tap("logits", "logits", "BK", {"K": CLASSES})
TOKENS = Tap("logits", "logits", "BLK", {"K": CLASSES})


class Labelled(ObjectiveConformance):
    """Reads labels too; probabilities where ``mixed``."""

    student = teacher = LOGITS
    data: ClassVar[Mapping[str, Any]] = {"classes": CLASSES}
    mixed: ClassVar[bool] = False

    def aux(self, generator: torch.Generator) -> dict[str, Any]:
        if self.mixed:
            return {"labels": torch.rand(self.samples, CLASSES, generator=generator).softmax(-1)}
        shape = [self.samples] if self.student.layout == "BK" else [self.samples, self.sizes["L"]]
        return {"labels": torch.randint(0, CLASSES, shape, generator=generator)}


class Logits(ObjectiveConformance):
    student = teacher = LOGITS


CASES: dict[str, tuple[type[ObjectiveConformance], list[dict[str, Any]]]] = {
    "ofa": (
        Labelled,
        [
            {},
            {"options": {"gamma": 1.4, "variant": "paper"}},
            {"options": {"gamma": 1.4, "target": "soft"}, "mixed": True},
            {"options": {"gamma": "auto"}, "student": TOKENS, "teacher": TOKENS},
        ],
    ),
    "dkd": (Labelled, [{}, {"student": TOKENS, "teacher": TOKENS}, {"mixed": True}]),
    "nkd": (Labelled, [{}, {"student": TOKENS, "teacher": TOKENS}]),
    # The weight of a sample has no gradient, so finite differences see another loss.
    "wsld": (Labelled, [{"smooth": False}, {"student": TOKENS, "teacher": TOKENS, "smooth": False}]),
    "logit-std": (Logits, [{}, {"student": TOKENS, "teacher": TOKENS}]),
    "dist": (Logits, [{}, {"student": TOKENS, "teacher": TOKENS, "options": {"temperature": 2.0}}]),
    # So has its target, which follows the student.
    "taid": (Logits, [{"smooth": False}, {"student": TOKENS, "teacher": TOKENS, "smooth": False}]),
}
for _name, (_base, _cases) in CASES.items():
    for _number, _case in enumerate(_cases):
        _title = f"Test_{_name.replace('-', '_')}_{_number}"
        globals()[_title] = type(_title, (_base,), {"objective": _name, **_case})


@pytest.mark.parametrize("name", [s.name for s in get_registry().specs("objective") if s.plugin == "objectives"])
def test_no_objective_is_forgotten(name: str) -> None:
    assert name in CASES


def test_every_objective_names_its_paper_and_says_its_formula() -> None:
    registry = get_registry()
    for spec in registry.specs("objective"):
        if spec.plugin == "objectives":
            kind = registry.resolve(spec)
            assert spec.data["paper"], f"{spec.name} names no paper"
            assert spec.data["units"] == kind.units
            said = " ".join((kind.__doc__ or "").split())
            assert spec.data["paper"].replace("arXiv:", "arXiv ") in said, f"{spec.name}: the docstring names no paper"
