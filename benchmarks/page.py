"""The tables of the results: in a terminal, and as ``benchmarks/RESULTS.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.store import RESULTS, Result, read
from benchmarks.tables import rows
from benchmarks.tables.row import Row

PAGE = RESULTS.parent / "RESULTS.md"
NOTES = RESULTS.parent / "notes.md"
HEADS = ("what", "figure", "spread", "n", "rival or control")
TITLES = {
    "smollm2_hybrid": "SmolLM2-135M, 10 of 30 layers replaced: quality",
    "constant_state": "SmolLM2-135M in constant state without training: quality at equal bytes",
    "constant_state_half": "The same with half the bytes, 84 kB a layer",
    "cache_schemes": "The same bytes by published schemes: quality at 2048 tokens in all 30 layers",
    "state_recall": "The same students: what they know of a text some distance later",
    "edge_speed": "Exported students against their teacher at its best: speed, bytes, quality of the files",
    "encdec_speed": "Exported encoder-decoders against their teacher: first token, tokens a second, bytes",
    "encdec_decoder": "Encoder-decoders beside decoders of their work: a number looked up in a long source",
    "study_encdec_starts": "How a decoder begins as an encoder-decoder, at equal tokens",
    "acm_speed": "Adaptive models exported: a ViT-S and one MLP beside their dense forms",
    "acm_speed_torch": "The same on another processor: one MLP in torch by both backends, SmolLM2-135M token by token",
    "study_acm_fashion": "Adaptive computation against its controls on Fashion-MNIST, budgets 25, 50, 75 per cent",
    "study_acm_smollm2": "Gates against fixed numbers of learners where half is too little: MLPs of SmolLM2-135M",
    "study_acm_collapse": "What keeps the paper's gates from one choice for all",
    "conversion_speed_cpu": "Matrix and hidden stages: speed",
    "matrix_memory": "Matrix stage: memory over tokens",
    "engine_overhead": "Engine: CPU time of a step over a plain loop",
    "faults": "Faults: what becomes of a run",
    "fuzz": "Mutated inputs: what becomes of what people hand over",
    "plan_accuracy": "Plans against the runs they promise",
    "streamed_memory": "Local stages: memory over depth",
    "kernels_cpu": "Kernels: forward and backward",
    "kernels_cpu_2048": "Kernels: scans at 2048 tokens, the same allocator and repeats for all",
    "study_deit_lt_digits": "DeiT-LT against its controls on long-tailed digits, imbalance 20",
    "study_deit_lt_fashion": "DeiT-LT against its controls on Fashion-MNIST-LT, imbalance 100, 3,720 pictures",
    "study_deit_lt_fashion_50": "The same at imbalance 50, 4,196 pictures",
    "study_deit_lt_openclipart": "DeiT-LT against its controls on drawings with a natural long tail, 22 classes",
    "study_deit_lt_cifar100": "DeiT-LT against its controls on CIFAR-100-LT, imbalance 100",
    "study_ofa_fashion": "OFA-KD against its rivals and controls: four pairs, 1,000 labelled pictures of Fashion-MNIST",
    "study_ofa_why": "Why DIST is as good as OFA-KD for students with tokens",
    "study_ofa_cifar100": "OFA-KD against its rivals and controls: a residual network to a ViT on CIFAR-100",
    "study_objectives_league": "All objectives beside the labels, on two pairs",
    "study_recurrent_kinds": "Kinds of recurrent layers in ten layers of SmolLM2-135M, before any training",
    "study_ofa_demo": "The demo of digits against labels alone",
    "fields_speed_up": "Fields: conversion against training from pictures",
    "fields_speed_up_vm": "Fields: the same for vm, with rays and samples tuned on both sides",
    "fields_any_to_any": "Fields: every kind into every other, procedural scene",
    "fields_any_to_any_blender": "Fields: every kind into every other, path-traced scene",
    "fields_staged": "Fields: stages against rays alone",
    "fields_active_levels": "Fields: drawing the worst poses and rays again",
    "fields_edited": "Fields: edited teachers, converted",
    "fields_round_trips": "Fields: files written and read again",
    "fields_exported": "Fields: exported points in onnxruntime",
}
"""Order and titles; results of other names follow under their own."""
INTRODUCTION = """# Results

Generated from `benchmarks/results/*.json` by `python -m benchmarks results`; do not edit. Above each table stand the
command that measured it, the machine, the date and the code, which hold for all its rows. *n* counts seeds, or repeats
where it says so; *spread* is the least and the most over them. The last column is what the same result stores for
comparison; where it is empty, nothing was measured beside the figure. For fields, *s* is CPU seconds of planning, start
and stages, and PSNR is against the teacher unless it says otherwise. Fields are named as in `xarch list targets`;
`tensors` are voxels.
"""


def markdown(results: dict[str, Result], notes: str) -> str:
    """The whole page.

    Args:
        results: file name without its ending -> result.
        notes: a section about figures without a result file.
    """
    order = [name for name in TITLES if name in results] + sorted(set(results) - set(TITLES))
    return "\n".join([INTRODUCTION, *(section(name, results[name]) for name in order), notes])


def section(name: str, result: Result) -> str:
    """Title, circumstances and table of one result."""
    lines = [f"## {TITLES.get(name, name)}", "", *circumstances(result), ""]
    lines += [f"- **Caveat:** {note}" for note in result.header.get("notes", [])]
    lines += [""] if result.header.get("notes") else []
    lines += _line(HEADS), _line(["---"] * len(HEADS))
    lines += [_line(_cells(row)) for row in rows(result)]
    return "\n".join(lines) + "\n"


def circumstances(result: Result) -> list[str]:
    """Command, machine, date and code in two lines."""
    header = result.header
    versions, machine = header["versions"], header["machine"]
    cores, threads = machine.get("cores"), machine.get("threads")
    where = machine.get("device") or "processor not recorded"
    where += f", {cores} cores" if cores and cores > 1 else ""
    where += f", {threads} thread{'s' if threads != 1 else ''}" if threads else ""
    where += f", {machine['vector_isa']}" if "vector_isa" in machine else ""
    code = f"commit {header['commit']}" if header.get("commit") else "commit not recorded"
    code += f" (file added in {header['added']})" if header.get("added") else ""
    unfinished = "" if header["finished"] else " **Unfinished.**"
    programs = ", ".join(f"{name} {versions[name]}" for name in ("torch", "onnxruntime") if name in versions)
    later = "".join(_later(told) for told in header.get("later", []))
    return [f"`{header['command']}`\\", f"{where}; {header['date']}; {code}; {programs}.{later}{unfinished}"]


def _later(told: dict[str, Any]) -> str:
    """What came to a study later, and how runs that it measured again compare."""
    again = [f"{run} {r['figure']} {r['again']:.4g} ({r['published']:.4g})" for run, r in told["again"].items()]
    where = f"{told['machine']}, {told['date']}, commit {told['commit']}"
    return f" Later, on {where}: {', '.join(told['runs'])}; measured again there (as published): {', '.join(again)}."


def published() -> dict[str, Result]:
    """The results in ``benchmarks/results``."""
    return {path.stem: read(path) for path in sorted(RESULTS.glob("*.json"))}


def generate(page: Path = PAGE) -> str:
    """Write the page of the published results and return it."""
    text = markdown(published(), NOTES.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")
    return text


def show(result: Result) -> None:
    """The table of a result in a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADS, title=result.benchmark, title_justify="left")
    for row in rows(result):
        table.add_row(*_cells(row))
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table)


def _cells(row: Row) -> list[str]:
    return [row.what, row.figure, row.spread, row.seeds, row.rival]


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
