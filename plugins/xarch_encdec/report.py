"""Report section of encoder-decoders: their layers, and what was predicted of their speed beside what was measured."""

from __future__ import annotations

import re
from typing import Any

from xarch import validated
from xarch.report import RunInfo, Section, Table, Text
from xarch_decoder.facts import DecoderFacts
from xarch_encdec.layout import counts_of
from xarch_encdec.options import EncDecOptions
from xarch_encdec.predict import predict

HEAD = ("case", "predicted", "measured")

CASE = re.compile(r"(first token, prompt of|decode after) (\d+)")
"""Cases of the bench whose time follows from a prompt's length."""


def sections(run: RunInfo) -> list[Section]:
    """Return the section; nothing for students of another target, or made without a teacher."""
    student, teacher = run.plan.get("student"), run.plan.get("teacher")
    if not isinstance(student, dict) or not isinstance(teacher, dict) or student.get("target") != "encdec":
        return []
    options = validated(EncDecOptions, student.get("options", {}), "student.options")
    facts = DecoderFacts.from_json(teacher["facts"])
    traits = [str(words) for words in student.get("traits", {}).values()]
    said = [Text(" ".join(f"{words[:1].upper()}{words[1:]}." for words in traits))]
    rows = [row for profile, bench in run.bench.items() for row in _rows(facts, options, profile, bench)]
    table = [Table(list(HEAD), rows, "lrr", "Times as a share of the teacher's.")] if rows else []
    return [Section("Encoder and decoder", [*said, *table])]


def _rows(facts: DecoderFacts, options: EncDecOptions, profile: str, bench: dict[str, Any]) -> list[list[str]]:
    counts, rows = counts_of(facts, options), []
    for name, speed_up in bench.get("teacher", {}).get("speed_up", {}).items():
        found = CASE.fullmatch(name)
        if found is None:
            continue
        width, prompt = options.encoder_width, int(found[2])
        expected = predict(facts, options.cross, *counts, prompt=prompt, answer=options.answer, width=width)
        share = expected.first_token if found[1].startswith("first") else 1 / expected.speed
        rows.append([f"{profile}: {name}", f"{share:.2f}", f"{1 / speed_up:.2f}"])
    return rows
