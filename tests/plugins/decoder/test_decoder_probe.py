"""The probe: it measures what it says, and chooses by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.plugins.mohawk.mohawk_models import logits, make_student, make_teacher, tiny_facts, tokens
from xarch import Batch, BatchStream, StageRequest, UsageError
from xarch_decoder.layer_probe import KLProbe, ProbeOptions


class Stream(BatchStream):
    def __init__(self, batches: list[Batch]) -> None:
        self.batches, self.at = batches, 0

    def __next__(self) -> Batch:
        self.at += 1
        return self.batches[self.at - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.at = state["at"]


class Context:
    """The parts of a running stage that a probe may use."""

    name, seed = "choose", 0

    def __init__(self, student, teacher, batches, **options) -> None:
        self.student, self.teacher, self.options = student, teacher, ProbeOptions.model_validate(options)
        self.stream = Stream(batches)
        self.rows: list[dict[str, float]] = []
        self.done: list[tuple[int, int]] = []

    def batches(self) -> BatchStream:
        return self.stream

    def log(self, step: int, **metrics: float) -> None:
        self.rows.append(metrics)

    def progress(self, done: int, total: int, message: str = "") -> None:
        self.done.append((done, total))

    def solver(self, site: str) -> Any:
        raise AssertionError("a probe fits nothing")


def test_probe_measures_each_layer_alone_and_takes_the_lowest():
    facts = tiny_facts(layers=4)
    teacher = make_teacher(facts)
    student = make_student(teacher, layers={"choose": "kl", "count": 2})
    batches = [tokens(facts, 2, 30, seed=s, documents=True) for s in (1, 2, 3)]
    context = Context(student, teacher, batches, tokens=100)
    outcome = KLProbe().run(context)
    assert context.stream.at == 2
    assert outcome.metrics["tokens"] == 120
    read = batches[:2]
    for layer in range(4):
        alone = make_student(teacher, layers={"replace": [layer]})
        pairs = [(F.log_softmax(logits(teacher, b), -1), F.log_softmax(logits(alone, b), -1)) for b in read]
        kl = sum(float((p.exp() * (p - q)).sum()) for p, q in pairs) / 120
        assert outcome.per_site["kl"][f"blocks.{layer}"] == pytest.approx(kl, rel=1e-3)
    ranked = sorted(range(4), key=lambda i: outcome.per_site["kl"][f"blocks.{i}"])
    assert outcome.decisions == {"layers": sorted(ranked[:2])}
    # Four rows of as many tokens: the standard error of their mean.
    layer = ranked[0]
    alone = make_student(teacher, layers={"replace": [layer]})
    rows = [(F.log_softmax(logits(teacher, b), -1), F.log_softmax(logits(alone, b), -1)) for b in read]
    kls = torch.cat([(p.exp() * (p - q)).sum((1, 2)) / 30 for p, q in rows])
    assert outcome.per_site["kl_stderr"][f"blocks.{layer}"] == pytest.approx(float(kls.std()) / 2, rel=1e-3)
    assert 0 <= outcome.metrics["ties"] <= 2
    assert context.done[-1] == (400, 400)
    assert all(a <= b for a, b in context.done)
    student.decide(outcome.decisions)
    student.finish()
    assert student.replaced == tuple(sorted(ranked[:2]))


def test_a_perfect_mixer_costs_nothing():
    """Layer 2 attends nowhere and has no output, so replacing it is free and it must be chosen."""
    teacher = make_teacher(tiny_facts())
    with torch.no_grad():
        teacher.student.decoder.block(2).mixer().o.weight.zero_()
    student = make_student(teacher, layers={"choose": "kl", "count": 1})
    outcome = KLProbe().run(Context(student, teacher, [tokens(teacher.facts, 1, 30)], tokens=30))
    assert outcome.decisions == {"layers": [2]}
    # A single row has no error bar, so nothing is clear.
    assert outcome.metrics["ties"] == 2
    assert outcome.per_site["kl_stderr"] == {}
    assert abs(outcome.per_site["kl"]["blocks.2"]) < 1e-6
    assert outcome.per_site["kl"]["blocks.0"] > 1e-4


def test_given_layers_are_left_alone():
    teacher = make_teacher(tiny_facts())
    student = make_student(teacher, layers={"replace": [1]})
    outcome = KLProbe().run(Context(student, teacher, [], tokens=10))
    assert outcome.decisions == {}
    assert outcome.metrics == {"open_layers": 0.0}


def test_units_and_options():
    def units(**options):
        return KLProbe().units(StageRequest(ProbeOptions.model_validate(options), None, 48, None, ()))

    assert units() == 1024
    assert units(tokens=300) == 300
    with pytest.raises(ValueError, match="Extra inputs"):
        units(token=300)


def test_foreign_students_are_refused():
    teacher = make_teacher(tiny_facts())
    with pytest.raises(UsageError, match="only decoders"):
        KLProbe().run(Context(torch.nn.Identity(), teacher, []))
