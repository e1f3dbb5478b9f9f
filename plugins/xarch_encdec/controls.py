"""What a student must beat: the teacher with layers left out, at the student's work and at its size, untrained."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from xarch import Batch, Control, Sink, Tap, TapModel, Teacher
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.student import DecoderStudent
from xarch_decoder.weights import attention_names, trunk_shapes, weight_shapes
from xarch_encdec.rows import joined_rows
from xarch_encdec.student import EncDecStudent
from xarch_encdec.teacher import AnswerView, target_taps

CUT, SMALL = "teacher without layers", "teacher of as many parameters"


class CutTeacher(TapModel):
    """A decoder of some of the teacher's layers, sharing its tensors, that answers a batch of pairs.

    Args:
        teacher: a decoder.
        layers: the layers that are kept.
    """

    family = "encdec"

    def __init__(self, teacher: Teacher, layers: Collection[int]) -> None:
        facts: DecoderFacts = teacher.facts
        kept = list(layers)
        windows = tuple(facts.windows[i] for i in kept) if facts.windows else ()
        cut = replace(facts, layers=len(kept), windows=windows)
        decoder = DecoderStudent(cut, [[Attention]] * len(kept), device="meta")
        decoder.module.load_state_dict(_tensors(cut, kept, teacher), assign=True)
        decoder.module.eval().requires_grad_(False)
        self.module, self.facts, self.teacher = decoder.module, facts, decoder.as_teacher("cut", "", None)
        self._view = AnswerView(self.teacher)

    def taps(self) -> Mapping[str, Tap]:
        return {name: tap for name, tap in target_taps(self.facts, {}).items()}

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        self._view.run(joined_rows(batch), wanted, sink)


def _tensors(facts: DecoderFacts, kept: list[int], teacher: Teacher) -> dict[str, object]:
    names = {name: name for name in trunk_shapes(facts)}
    for j in range(facts.layers):
        names |= attention_names(facts, j)
    weights = teacher.weights()
    return {own: weights[_in_teacher(name, kept)] for own, name in names.items()}


def _in_teacher(name: str, kept: list[int]) -> str:
    head, _, rest = name.partition(".")
    if head != "blocks":
        return name
    layer, _, leaf = rest.partition(".")
    return f"blocks.{kept[int(layer)]}.{leaf}"


def cut_controls(teacher: object, student: object) -> dict[str, Control]:
    """Return the teacher cut to the multiply-adds of a student for a pair of the lengths it was planned for, and to its
    parameters if that leaves other layers; what need not be cut is left out. None if the teacher is no decoder."""
    if not isinstance(teacher, AnswerView) or not isinstance(student, EncDecStudent):
        return {}
    facts, lengths = teacher.facts, student.lengths
    found = {}
    for name, count in cuts(facts, student).items():
        kept = [round(k * (facts.layers - 1) / max(count - 1, 1)) for k in range(count)]
        cost = _work(facts, count, lengths) / _work(facts, facts.layers, lengths)
        said = {"keeps": f"{count} of {facts.layers} layers", "work": round(cost, 3), "for": dict(lengths)}
        found[name] = Control(CutTeacher(teacher.teacher, kept), said)
    return found


def cuts(facts: DecoderFacts, student: EncDecStudent) -> dict[str, int]:
    """Return the layers that each control keeps of a teacher with these facts."""
    lengths, sizes = student.lengths, {name: math.prod(shape) for name, shape in weight_shapes(facts).items()}
    work = student.work(lengths) * (lengths["source"] + lengths["target"])
    layer = sum(size for name, size in sizes.items() if name.startswith("blocks.0."))
    surplus = sum(sizes.values()) - sum(p.numel() for p in student.module.parameters())
    counts = {
        CUT: next((n for n in range(facts.layers, 1, -1) if _work(facts, n, lengths) <= work), 1),
        SMALL: max(1, facts.layers - max(0, math.ceil(surplus / layer))),
    }
    if counts[SMALL] == counts[CUT]:
        del counts[SMALL]
    return {name: count for name, count in counts.items() if count < facts.layers}


def _work(facts: DecoderFacts, layers: int, lengths: Mapping[str, int]) -> float:
    """Return the multiply-adds of a pair; the head is multiplied at the tokens of the answer alone."""
    total = lengths["source"] + lengths["target"]
    every = replace(facts, layers=layers, windows=facts.windows[:layers]).work({"length": total})
    return every * total - lengths["source"] * facts.width * facts.vocab
