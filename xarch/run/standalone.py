"""Completes the folder of an export, so that it runs without the run, xarch and torch: a program, what it reads, and a
README."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from xarch.contracts.export import Runner
from xarch.export.stored import PROFILE, read_profile
from xarch.files.atomic import write_json, write_text
from xarch.planning.describe import family_of
from xarch.planning.plan import Plan
from xarch.registry.registry import Registry
from xarch.report.licence import licence_text

README = "README.md"


def complete(folder: Path, graphs: Sequence[str], student: Path, family: str, plan: Plan, registry: Registry) -> None:
    """Copy the family's program for these graphs and the files of the student that it reads into ``folder``, name it in
    ``profile.json``, and describe the folder in README.md.

    Args:
        folder: of the export, with its graphs and ``profile.json``.
        student: folder of the saved student.

    Raises:
        PluginError: the family failed.
    """
    with registry.guard(registry.get("family", family), "runner"):
        runner = family_of(registry, family).runner(graphs, student)
        if runner is not None:
            copy_runner(runner, student, folder)
            told = {"program": runner.program.name, "usage": runner.usage, "packages": list(runner.packages)}
            write_json(folder / PROFILE, {**read_profile(folder), "runner": told})
    write_text(folder / README, _readme(folder, plan, runner))


def copy_runner(runner: Runner, student: Path, folder: Path) -> None:
    """Copy a program, and the files of a student that it reads and that exist, into ``folder``."""
    shutil.copyfile(runner.program, folder / runner.program.name)
    for name in runner.files:
        if (student / name).is_file():
            shutil.copyfile(student / name, folder / name)


def licence_of(plan: Plan) -> str | None:
    """Return the licence of the teacher, if there is one that states it."""
    licence = None if plan.teacher is None else plan.teacher.details.get("licence")
    return str(licence) if licence else None


def _readme(folder: Path, plan: Plan, runner: Runner | None) -> str:
    described = read_profile(folder)
    teacher = "" if plan.teacher is None else f" from {plan.teacher.title or plan.teacher.ref}"
    lines = [f"# {plan.name}", "", f"Converted{teacher} by xarch, exported for `{described['profile']['name']}`.", ""]
    if runner is None:
        lines += ["Its family has no program for these graphs; `xarch inspect GRAPH.onnx` shows what they read.", ""]
    else:
        lines += [
            "    pip install " + " ".join(runner.packages),
            f"    python {runner.program.name} {runner.usage}",
            "",
        ]
    lines += ["| graph | opset | session options |", "|---|---|---|"]
    for name, graph in described["graphs"].items():
        options = ", ".join(f"`{key}={value}`" for key, value in graph["session_options"].items())
        lines.append(f"| `{name}.onnx` | {graph['opset']} | {options or '–'} |")
    weights = described["weights"]
    lines += [
        "",
        (f"All graphs read their weights from `{weights['file']}`. " if weights["bytes"] else "")
        + "Each reproduced the student on held-out data (`parity.json`). Their metadata hold what a program must know; "
        "`manifest.json` the sha256 of every file.",
        "",
        "## Licence",
        "",
        licence_text(licence_of(plan), plan.teacher is not None),
        "",
    ]
    return "\n".join(lines)
