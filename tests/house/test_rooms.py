"""Which room of the house may import which: arrows point down, and the core knows no plugin."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "xarch"

ROOMS = (
    "errors",
    "_version",
    "numbers",
    "hardware",
    "files",
    "contracts",
    "config",
    "registry",
    "matching",
    "optim",
    "kernels",
    "planning",
    "engine",
    "export",
    "bench",
    "report",
    "run",
    "api",
    "testing",
    "cli",
)
"""From the bottom to the top: a room imports itself and rooms below it."""

ABOVE = {"__init__", "__main__", "builtin"}
"""Modules that stand on all rooms; nothing imports them."""

UPWARDS = {
    ("contracts", "export"): "the default parity cases of a target",
    ("config", "registry"): "the text of a recipe that a configuration names",
    ("planning", "export"): "a small copy is translated while planning",
    ("report", "run"): "gates are checked again from the files of a run",
}
"""Arrows that point up today, all inside functions but the last; the list may only become shorter."""

PLUGINS_OF_THE_CORE = {
    # These go: a family object will hand the core its bench, its tiny models and its template.
    ("bench/latency.py", "xarch_decoder.bench"),
}
"""(file, module): imports of plugin packages by the core, all inside functions."""


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported at the top level) of a file; imports for type checkers only are left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        top = node in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "xarch":
                yield from ((f"xarch.{alias.name}", top) for alias in node.names)
            else:
                yield node.module, top


def room_of(file: Path) -> str:
    return file.relative_to(CORE).with_suffix("").parts[0]


FILES = sorted(CORE.rglob("*.py"))


def test_every_module_has_a_room() -> None:
    assert {room_of(f) for f in FILES} == {*ROOMS, *ABOVE}


def test_arrows_point_down() -> None:
    wrong, seen = [], set()
    for file in FILES:
        room = room_of(file)
        if room in ABOVE:
            continue
        for module, _ in imports(file):
            package, _, rest = module.partition(".")
            if package != "xarch":
                continue
            other = rest.split(".")[0]
            up = other not in ROOMS or ROOMS.index(other) > ROOMS.index(room)
            if up and (room, other) in UPWARDS:
                seen.add((room, other))
            elif up:
                wrong.append(f"{file.relative_to(ROOT)}: {room} imports {module}")
    assert not wrong
    assert seen == set(UPWARDS), "an arrow went; take it off the list"


def test_the_core_imports_no_plugin() -> None:
    found = {
        (str(file.relative_to(CORE)), module, top)
        for file in FILES
        for module, top in imports(file)
        if module.startswith("xarch_")
    }
    assert not [(f, m) for f, m, top in found if top], "at the top level of a module"
    assert {(f, m) for f, m, _ in found} == PLUGINS_OF_THE_CORE
