"""Report section of decoders: which layers were replaced."""

from __future__ import annotations

from xarch.report import RunInfo, Section, Strip, Text

MOST_LAYERS = 10_000


def sections(run: RunInfo) -> list[Section]:
    """Return the layers as a strip; nothing if the run does not record the number of layers."""
    teacher, student = run.plan.get("teacher"), run.plan.get("student")
    total = teacher.get("facts", {}).get("layers") if isinstance(teacher, dict) else None
    if not isinstance(total, int) or not 0 < total <= MOST_LAYERS or not isinstance(student, dict):
        return []
    sites = run.student.get("sites") or student.get("sites") or []
    replaced = {name for name in sites if isinstance(name, str)}
    cells = [(f"blocks.{i}", f"blocks.{i}" in replaced) for i in range(total)]
    count = sum(on for _, on in cells)
    words = (f"replaced by {student.get('target', 'the student')}", "kept from the teacher")
    share = f"{count} of {total} layers replaced ({100 * count / total:.0f} %)"
    return [Section("Layers", [Text(share), Strip(cells, words, "layers in order")])]
