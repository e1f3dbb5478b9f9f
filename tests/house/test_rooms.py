"""Which room of the house may import which: arrows point down, and the core knows no plugin."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "xarch"

ROOMS = (
    "errors",
    "failures",
    "_version",
    "numbers",
    "printable",
    "hardware",
    "threads",
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
    ("export", "api"): "the package can be called as the public function of its name",
    ("config", "registry"): "the text of a recipe that a configuration names",
    ("planning", "export"): "a small copy is translated while planning",
    ("report", "run"): "gates are checked again from the files of a run",
}
"""Arrows that point up today, all inside functions but the last; the list may only become shorter."""

FAMILY_WORDS = re.compile(
    r"(?<![a-z])(decoders?|tokens?|tokenizers?|prefill|decode_1|blocks\.|mixers?|mamba|attention|llama|perplexity"
    r"|vocab|vocabulary|radiance|rays?|voxels?|nerf|occupancy|first_token|image_size)(?![a-z])",
    re.IGNORECASE,
)
"""Words of one kind of model. Generic rooms may use them in prose, as examples, but not as names or values."""

ALLOWED = {
    ("cli/machine.py", "tokenizers"): "versions of installed distributions are listed by their names",
    ("cli/machine.py", "mamba"): "likewise",
    ("config/study.py", "ray"): "the cluster library of that name",
    ("run/study/executors.py", "ray"): "the cluster library of that name",
    ("export/lowerings/sdpa.py", "attention"): "torch's own function of that name",
    ("files/run_dir.py", "token"): "secrets.token_hex of the standard library",
}
"""(file, word): why a generic room may use it."""

KERNELS = "kernels"
"""Operators belong to families and are listed by family; every other room is generic."""


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
        (str(file.relative_to(CORE)), module)
        for file in FILES
        for module, _ in imports(file)
        if module.startswith("xarch_")
    }
    assert not found


PROSE = ("description", "help", "summary")
"""Arguments that hold text for people."""


def words_of(file: Path) -> Iterator[tuple[str, int]]:
    """Names and values of a file with their lines: no comments, docstrings or texts for people."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    prose = {
        id(k.value) for node in ast.walk(tree) if isinstance(node, ast.Call) for k in node.keywords if k.arg in PROSE
    }
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        # A string that stands alone is a docstring, of a module, class, function or constant.
        prose |= {id(s.value) for s in (body if isinstance(body, list) else ()) if isinstance(s, ast.Expr)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value, line
        for name in ("id", "attr", "arg", "name", "module"):
            value = getattr(node, name, None)
            if isinstance(value, str):
                yield value.replace("_", " ") if "_1" not in value else value, line


def test_generic_rooms_know_no_family() -> None:
    """house section 4: some sixty places of the core assumed a decoder or a field."""
    found, used = [], set()
    for file in FILES:
        name = file.relative_to(CORE).as_posix()
        if name.startswith(KERNELS):
            continue
        for text, line in words_of(file):
            for match in FAMILY_WORDS.finditer(text):
                word = match.group().lower()
                if (name, word) in ALLOWED:
                    used.add((name, word))
                else:
                    found.append(f"{name}:{line}: {word!r} in {text[:60]!r}")
    assert not found, "\n".join(found)
    assert used == set(ALLOWED), "a word went; take it off the list"


def test_the_words_are_found_in_names_and_values_but_not_in_prose(tmp_path: Path) -> None:
    file = tmp_path / "room.py"
    file.write_text(
        '"""Decoders read tokens."""\n\nunit: int = Field(description="tokens")\n'
        'first = graphs["decode_1"]\nvocab_size = facts.vocab  # a vocabulary\n',
        encoding="utf-8",
    )
    seen = {m.group().lower() for text, _ in words_of(file) for m in FAMILY_WORDS.finditer(text)}
    assert seen == {"decode_1", "vocab"}
