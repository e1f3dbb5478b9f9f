"""Result files: their one format, resuming an interrupted measurement, and publishing.

A result is a JSON document with one point a line, so that a new measurement differs from an old one point by point::

    {"header": {...},       # what was measured, by which command, on what, and of which code
     "facts": {...},        # what was measured or fixed once for all points: limits, teachers
     "points": [...]}

Measuring writes to ``benchmarks/out`` (ignored by git) after every point. An interrupted measurement resumes there, and
only if benchmark, settings, code, machine and versions are those of the file; otherwise it starts anew. The published
results in ``benchmarks/results`` are never read or written by a measurement; :func:`publish` copies a finished one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "benchmarks" / "out"
SAME = ("benchmark", "digest", "settings", "machine", "versions")
"""Parts of a header that must agree before a measurement resumes; the code is compared besides."""
PLACES = ("--out", "--work", "--fresh")
"""Options that do not change what is measured; the recorded command leaves them out."""
FOLDED = {"encdec_decoder"}
"""Results whose seeds are published on one line."""
LOCAL = re.compile(r'"[^"]*(?<![\w/])/(home|root|tmp|work|mnt|Users)/[^"]*"')
CODE = (".py", ".cpp", ".h", ".yaml")
SHOWN = {ROOT / "benchmarks" / name for name in ("page.py", "__main__.py")}
SHOWN.update((ROOT / "benchmarks" / "tables").glob("*.py"))
"""Files that only show results: a measurement does not depend on them."""


@dataclass
class Result:
    """A result file."""

    header: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)

    @property
    def benchmark(self) -> str:
        return str(self.header["benchmark"])

    def text(self) -> str:
        """The file's text: one line for each entry of header and facts, and for each point."""
        head, facts = (_entries(part) for part in (self.header, self.facts))
        points = ",\n".join(map(_compact, self.points))
        facts = f"{{\n{facts}\n}}" if facts else "{}"
        return f'{{"header": {{\n{head}\n}},\n"facts": {facts},\n"points": [\n{points}\n]}}\n'


def read(path: Path) -> Result:
    """The result in a file."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return Result(data["header"], data["facts"], data["points"])


def write(path: Path, result: Result) -> None:
    """Replace a file atomically, so that an interrupt leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".partial")
    fresh.write_text(result.text(), encoding="utf-8")
    os.replace(fresh, path)


class Store:
    """The result of a measurement in progress, written after every point.

    Attributes:
        continued: whether points of an earlier, interrupted measurement were kept.
    """

    def __init__(self, path: Path, header: dict[str, Any], fresh: bool = False) -> None:
        if path.resolve().parent == RESULTS:
            raise SystemExit(f"{path} is a published result: measure elsewhere, then `python -m benchmarks publish`")
        self.path = path
        self.result = Result({**header, "finished": False})
        self.continued = False
        if path.is_file() and not fresh:
            self._resume(read(path), header)

    def _resume(self, before: Result, header: dict[str, Any]) -> None:
        if any(before.header.get(key) != header.get(key) for key in SAME):
            return
        kept = list(_unchanged(before, header["code"]))
        if not kept and before.points:
            return
        self.continued = True
        finished = before.header["finished"] and len(kept) == len(before.points)
        self.result = Result({**before.header, "code": header["code"], "finished": finished}, before.facts, kept)
        print(f"{len(kept)} points of an earlier measurement are kept; --fresh measures them again", file=sys.stderr)

    @property
    def points(self) -> list[dict[str, Any]]:
        return self.result.points

    @property
    def facts(self) -> dict[str, Any]:
        return self.result.facts

    @property
    def key(self) -> str:
        """Names settings and code: a folder for files that other settings or other code must not reuse."""
        code = json.dumps(self.result.header["code"], sort_keys=True)
        return hashlib.sha256((self.result.header["digest"] + code).encode()).hexdigest()[:12]

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        """The first point with these values."""
        return next((p for p in self.points if all(p.get(k) == v for k, v in wanted.items())), None)

    def add(self, point: dict[str, Any]) -> dict[str, Any]:
        """Append a point and write the file."""
        self.points.append(point)
        self.result.header |= {"date": today(), "finished": False}
        write(self.path, self.result)
        return point

    def note(self, **facts: Any) -> None:
        """Set facts; the file is written only if one changed."""
        if any(self.facts.get(k) != v for k, v in facts.items()):
            self.facts.update(facts)
            write(self.path, self.result)

    def finish(self) -> Result:
        """Mark the measurement as complete; a result that already is stays untouched."""
        if not self.result.header["finished"]:
            self.result.header["finished"] = True
            write(self.path, self.result)
        return self.result


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """``--out`` and ``--fresh``, the same for every benchmark."""
    parser.add_argument("--out", type=Path, default=SCRATCH / f"{name}.json", help="result file [benchmarks/out/...]")
    parser.add_argument("--fresh", action="store_true", help="measure everything again instead of resuming")


def header(
    benchmark: str,
    settings: dict[str, Any],
    *,
    threads: int,
    device: str = "cpu",
    code: str | dict[str, str] | None = None,
) -> dict[str, Any]:
    """The header of a measurement that starts now.

    Args:
        settings: everything that decides a point's value; not which points are measured.
        code: digest of the code, or one for each operation; by default that of the whole project.
    """
    from benchmarks import machine

    settings = json.loads(json.dumps(settings))
    return {
        "benchmark": benchmark,
        "command": command(sys.argv),
        "date": today(),
        "commit": machine.commit(),
        "settings": settings,
        "digest": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12],
        "code": code or digest_of_code(),
        "machine": machine.machine(device, threads),
        "versions": machine.versions(),
    }


def command(argv: Sequence[str]) -> str:
    """The command line as it is recorded: no output folders, no absolute paths."""
    script = Path(argv[0])
    if script.name == "__main__.py":
        words = ["python", "-m", "benchmarks." + script.parent.name]
    else:
        inside = script.resolve().is_relative_to(ROOT)
        words = ["python", str(script.resolve().relative_to(ROOT)) if inside else script.name]
    rest = iter(argv[1:])
    for word in rest:
        name, _, value = word.partition("=")
        if name in PLACES:
            if name != "--fresh" and not value:
                next(rest, None)
        else:
            words.append(Path(word).name if word.startswith("/") else word)
    return shlex.join(words)


def digest_of_code() -> str:
    """Digest of the source files of xarch, its plugins and the benchmarks."""
    found = hashlib.sha256()
    for folder in ("xarch", "plugins", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in CODE and path not in SHOWN and path.is_file():
                found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def publish(name: str, source: Path | None = None, *, partial: bool = False, add: bool = False) -> Path:
    """Copy a measured result into ``benchmarks/results``.

    Args:
        partial: even if it is unfinished.
        add: of a study, add the runs that are not published to those that are, see :func:`benchmarks.studies.added`.

    Raises:
        SystemExit: there is none, it is unfinished, or it names folders of this machine.
    """
    from benchmarks import studies

    source = source or SCRATCH / f"{name}.json"
    if not source.is_file():
        raise SystemExit(f"nothing was measured: {source} does not exist")
    result = read(source)
    target = RESULTS / f"{name}.json"
    if "settings" not in result.header:
        result = studies.from_study(name, result)
        result = studies.added(read(target), result) if add else result
    elif add:
        raise SystemExit(f"{name} is no study: its points cannot be added to those of another measurement")
    if not (result.header["finished"] or partial):
        raise SystemExit(f"{source} is unfinished; finish the measurement, or publish it as it is with --partial")
    if name in FOLDED:
        result.points = folded(result.points)
    local = LOCAL.search(result.text())
    if local:
        raise SystemExit(f"{source} names a folder of this machine: {local.group()}")
    write(target, result)
    return target


def folded(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points that differ in numbers alone as one, which has lists of them; a single one stays as it is."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for point in points:
        same = tuple((k, v) for k, v in point.items() if isinstance(v, str))
        groups.setdefault((same, tuple(point)), []).append(point)
    return [
        at[0] if len(at) == 1 else {k: v if isinstance(v, str) else [p[k] for p in at] for k, v in at[0].items()}
        for at in groups.values()
    ]


def unfolded(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Invert :func:`folded`, but for the order."""
    found = []
    for point in points:
        count = next((len(v) for v in point.values() if isinstance(v, list)), 1)
        found += [{k: v[i] if isinstance(v, list) else v for k, v in point.items()} for i in range(count)]
    return found


def today() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d")


def _unchanged(before: Result, code: str | dict[str, str]) -> Iterable[dict[str, Any]]:
    """Points whose code is the same; where there is a digest for each operation, those of the unchanged ones."""
    known = before.header.get("code")
    if isinstance(code, dict):
        known = known if isinstance(known, dict) else {}
        return (p for p in before.points if p["op"] in code and known.get(p["op"]) == code[p["op"]])
    return before.points if known == code else ()


def _entries(values: dict[str, Any]) -> str:
    return ",\n".join(f"{json.dumps(k)}: {_compact(v)}" for k, v in values.items())


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
