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
FEATURES = {"student": Tap("s", "feature", "BD", {"D": 3}), "teacher": Tap("t", "feature", "BD", {"D": 4})}


def maps(side: str, channels: int, height: int = 2, width: int = 3) -> Tap:
    return Tap(side, "feature", "BCHW", {"C": channels, "H": height, "W": width})


class Labelled(ObjectiveConformance):
    """Reads labels too; probabilities where ``mixed``."""

    student = teacher = LOGITS
    data: ClassVar[Mapping[str, Any]] = {"classes": CLASSES, "indices": 13}
    mixed: ClassVar[bool] = False
    indexed: ClassVar[bool] = False

    def aux(self, generator: torch.Generator) -> dict[str, Any]:
        if self.mixed:
            return {"labels": torch.rand(self.samples, CLASSES, generator=generator).softmax(-1)}
        shape = [self.samples, self.sizes["L"]] if self.student.layout == "BLK" else [self.samples]
        labels = {"labels": torch.randint(0, CLASSES, shape, generator=generator)}
        return {**labels, "index": torch.tensor([2, 3, 7, 12])} if self.indexed else labels


class GivenLabels(ObjectiveConformance):
    """The right side is labels."""

    student, teacher = LOGITS, Tap("labels", "batch", "B")
    data: ClassVar[Mapping[str, Any]] = {"classes": CLASSES, "class_counts": [90, 3, 50, 7, 1]}

    def teacher_value(self, generator: torch.Generator) -> Any:
        return torch.randint(0, CLASSES, (self.samples,), generator=generator)


class Logits(ObjectiveConformance):
    student = teacher = LOGITS


class Features(ObjectiveConformance):
    student, teacher = FEATURES["student"], FEATURES["teacher"]


class Maps(ObjectiveConformance):
    student, teacher = maps("s", 2), maps("t", 3, 4, 2)


class Joined(ObjectiveConformance):
    student: ClassVar[Any] = {"a": maps("a", 2, 4, 4), "b": maps("b", 3, 2, 2)}
    teacher: ClassVar[Any] = {"a": maps("x", 3, 6, 6), "b": maps("y", 4, 1, 1)}


class Classifier(ObjectiveConformance):
    student, teacher = FEATURES["teacher"], LOGITS
    constants = ({"classifier.weight": torch.linspace(-1, 1, CLASSES * 4).reshape(CLASSES, 4)}, {})


ON_TOKENS = {"student": TOKENS, "teacher": TOKENS}
MANY = {side: Tap("logits", "logits", "BK", {"K": 16}) for side in ("student", "teacher")}
DETACHED = {"smooth": False}
"""Finite differences see another loss where a part of it has no gradient on purpose, or a reversed one."""
CASES: dict[str, tuple[type[ObjectiveConformance], list[dict[str, Any]]]] = {
    "ofa": (
        Labelled,
        [
            {"options": {"gamma": "auto"}, **ON_TOKENS},
            {"options": {"gamma": 1.4, "target": "soft", "variant": "paper"}, "mixed": True},
        ],
    ),
    "dkd": (Labelled, [ON_TOKENS, {"mixed": True}]),
    "nkd": (Labelled, [ON_TOKENS]),
    "wsld": (Labelled, [{**DETACHED, **ON_TOKENS}]),
    "ferkd": (Labelled, [{"options": {"low": 0.3, "middle": 0.5, "high": 0.7}}]),
    "margin-mse": (Labelled, [{}]),
    "ldam": (GivenLabels, [{"options": {"scale": 3.0, "balance": "effective-number"}}]),
    "logit-adjustment": (GivenLabels, [{"options": {"strength": 2.5}}]),
    "consistency": (
        Labelled,
        [{**ON_TOKENS}, {"options": {"strength": -0.5}, "data": {"class_counts": [90, 3, 50, 7, 1]}}],
    ),
    "logit-std": (Logits, [ON_TOKENS]),
    "dist": (Logits, [{"options": {"temperature": 2.0}, **ON_TOKENS}]),
    "taid": (Logits, [{**DETACHED, **ON_TOKENS}]),
    "ltkd": (Logits, [{"data": {"class_counts": [90, 3, 50, 7, 1]}, **ON_TOKENS}]),
    "ctkd": (Logits, [{}]),
    "dac-kl": (Logits, [ON_TOKENS, {"options": {"band": "random"}}, {"options": {"band": "fixed", "mass": 0.9}}]),
    "discriminator": (Logits, [{**DETACHED, **MANY}]),
    "mlld": (Logits, [{}]),
    "sinkd": (Logits, [{}]),
    "srrl": (Classifier, [{}]),
    "nd": (Labelled, [{"student": FEATURES["teacher"], "teacher": FEATURES["teacher"]}]),
    "crd": (Labelled, [{**FEATURES, "indexed": True, "options": {"width": 6, "negatives": 4}}]),
    "rkd": (Features, [{}]),
    "sp": (Maps, [{}]),
    "pkt": (Features, [{}]),
    "corr": (Features, [{"options": {"width": 6}}]),
    "cckd": (Features, [{"options": {"width": 6}}]),
    "cka": (Maps, [{}]),
    "mi-alpha": (Features, [{"options": {"width": 6}}]),
    "at": (Maps, [{}]),
    "nst": (Maps, [{}]),
    "ickd": (Maps, [{"teacher": maps("t", 2, 4, 2)}]),
    "vid": (Maps, [{}]),
    "mgd": (Maps, [{"options": {"alpha": 0.1}}]),
    "minilm": (
        Maps,
        [{}, {"student": Tap("s", "v", "BLD", {"D": 4}), "teacher": Tap("t", "v", "BLHE", {"H": 2, "E": 4})}],
    ),
    "reviewkd": (Joined, [{"options": {"width": 4}}]),
    "afd": (Joined, [{"options": {"width": 4}}]),
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
            assert spec.data["units"] == kind.units, spec.name
            said = " ".join((kind.__doc__ or "").split())
            assert spec.data["paper"].replace("arXiv:", "arXiv ") in said, f"{spec.name}: the docstring names no paper"
