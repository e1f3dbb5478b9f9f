"""What is planted can be known only from its place, and who looks there knows it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from xarch import Batch, EvaluationRequest, Sink, TapModel, UsageError
from xarch.config.validation import validated
from xarch_decoder.factored import FactoredLogits
from xarch_text.planted import ANSWERED, KINDS, SPAN, fitting, plant
from xarch_text.recall import Recall, RecallOptions

VOCAB = 500
DISTANCES, PROBES = [32, 96, 200], 2


class LooksBack(TapModel):
    """Predicts the token that followed the last occurrence of the last four tokens, if it is at most ``reach`` back."""

    def __init__(self, reach: int) -> None:
        self.reach = reach

    def taps(self) -> Any:
        raise NotImplementedError

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        ids_BL = batch["input_ids"]
        said_BL = torch.zeros_like(ids_BL)
        for row, ids_L in enumerate(ids_BL.tolist()):
            for at in range(3, len(ids_L)):
                earliest = max(at - self.reach, 3)
                found = [t for t in range(earliest, at) if ids_L[t - 3 : t + 1] == ids_L[at - 3 : at + 1]]
                said_BL[row, at] = ids_L[found[-1] + 1] if found else 0
        sink("logits", FactoredLogits(torch.nn.functional.one_hot(said_BL, VOCAB).float(), torch.eye(VOCAB)))


def rows(length: int = 300, count: int = 3) -> Tensor:
    return torch.randint(1, VOCAB, (count, length), generator=torch.Generator().manual_seed(1))


def measured(teacher: int | None, **students: int) -> Any:
    batch = Batch({"input_ids": rows(), "segment_ids": torch.zeros(3, 300, dtype=torch.long)}, 900)
    models = {name: LooksBack(reach) for name, reach in students.items()}
    options = RecallOptions(distances=DISTANCES, probes=PROBES)
    known = None if teacher is None else LooksBack(teacher)
    return Recall().evaluate(EvaluationRequest(known, models, lambda: [batch], options=options))


def test_every_question_stands_its_distance_after_its_source() -> None:
    before = rows()
    planted = plant(before, DISTANCES, PROBES, torch.Generator().manual_seed(0))
    assert torch.equal(before, rows()), "the rows were changed"
    assert planted.places.keys() == {(kind, distance) for kind in KINDS for distance in DISTANCES}
    for (kind, distance), places_P in planted.places.items():
        for last in places_P.unflatten(0, (PROBES, ANSWERED))[:, -1].tolist():
            question = torch.arange(last + 2 - SPAN, last + 2)
            assert torch.equal(planted.ids_BL[:, question], planted.ids_BL[:, question - distance])
            own = torch.equal(planted.ids_BL[:, question - distance], before[:, question - distance])
            assert own == (kind == "copy")


def test_only_distances_that_fit_are_asked() -> None:
    assert fitting([96, 32, 200], 300, 2) == [32, 96, 200]
    assert fitting([96, 32, 200], 231, 2) == [32, 96]
    assert fitting([64], 32, 1) == []


def test_accuracy_falls_with_the_distance() -> None:
    found = measured(1000, student=100, window=40)
    assert found.teacher == {"recall": 1.0, **{f"{kind}.{d}": 1.0 for kind in KINDS for d in DISTANCES}}
    assert (found.student["recall.32"], found.student["recall.96"], found.student["recall.200"]) == (1, 1, 0)
    assert found.student["recall"] == pytest.approx(2 / 3)
    assert found.baselines["window"]["copy.96"] == 0
    assert found.n == PROBES * 3 * ANSWERED * len(KINDS) * len(DISTANCES)


def test_what_the_teacher_does_not_know_is_not_asked() -> None:
    found = measured(100, student=1000)
    assert set(found.student) == {"recall", *(f"{kind}.{d}" for kind in KINDS for d in (32, 96))}
    assert set(measured(0, student=1000).student) == set(measured(1000, student=0).student), "it knows nothing: all are"
    assert measured(None, student=100).student["recall"] == pytest.approx(2 / 3), "no student chooses its questions"


def test_rows_too_short_for_any_probe_are_an_error() -> None:
    short = Batch({"input_ids": rows(40)}, 120)
    with pytest.raises(UsageError, match="no distance of"):
        Recall().evaluate(EvaluationRequest(None, {"student": LooksBack(9)}, lambda: [short], options=RecallOptions()))


@pytest.mark.parametrize(("distances", "probes"), [([8], 1), ([64, 80], 1), ([64, 128], 3)])
def test_probes_that_would_overlap_are_refused(distances: list[int], probes: int) -> None:
    with pytest.raises(UsageError, match="more than the one before"):
        validated(RecallOptions, {"distances": distances, "probes": probes}, "metric_options")
