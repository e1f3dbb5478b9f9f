"""``xarch new plugin``: a working plugin of any kind whose conformance tests pass before a line is changed."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from xarch._version import __version__
from xarch.errors import UsageError
from xarch.files.atomic import new_folder
from xarch.registry.loader import get_registry

if TYPE_CHECKING:
    from importlib.abc import Traversable

SUFFIX = ".tmpl"
MODULE = "module"
"""Template folder that becomes the plugin's package."""
TESTS = "test_conformance"
"""Template of the tests, named after the plugin when written."""

TARGET = "target"
KINDS = (
    TARGET,
    "family",
    "source",
    "teacher",
    "objective",
    "connector",
    "batch-step",
    "method",
    "recipe",
    "data",
    "metric",
    "stage",
    "optimiser",
    "wrapper",
    "schedule",
    "export",
    "report",
)
"""What can be written. A target's template is its family's; a family comes with a source, a target, data and more."""


def write_plugin(name: str, folder: Path, *, kind: str = TARGET, family: str = "") -> list[Path]:
    """Write the package of plugin ``name`` into ``folder`` and return the files.

    Args:
        name: letters, digits, ``-`` and ``_``, e.g. "rwkv7"; a leading "xarch-" is dropped.
        kind: one of :data:`KINDS`.
        family: for a target: family whose template is used; default: the only one with a template.

    Raises:
        UsageError: the name cannot be a Python module, the folder exists, or the family has no template.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no template of a {kind}", f"choose with --kind: {', '.join(KINDS)}")
    if family and kind != TARGET:
        raise UsageError(f"--family chooses the template of a target, not of a {kind}", "leave it out")
    short = name.removeprefix("xarch-")
    module = short.replace("-", "_").lower()
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise UsageError(f"{name!r} cannot name a plugin", "use letters, digits, - and _, beginning with a letter")
    if folder.exists():
        raise UsageError(f"{folder} exists", "choose another --out")
    values = {
        "name": short.lower(),
        "module": f"xarch_{module}",
        "kind": module,
        "title": "".join(part.capitalize() for part in module.split("_")),
        "version": __version__,
    }
    templates = (
        [_template(family)] if kind == TARGET else [files("xarch.testing") / "templates" / k for k in ("common", kind)]
    )
    written = []
    with new_folder(folder) as part:
        for parts, text in (file for template in templates for file in _files(template)):
            # pytest tells test files of several plugins apart by their names.
            named = [values["module"] if p == MODULE else p.replace(TESTS, f"test_{module}") for p in parts]
            path = part.joinpath(*named).with_suffix("")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).substitute(values), encoding="utf-8")
            written.append(folder / path.relative_to(part))
    return written


def _template(family: str) -> Traversable:
    """Return the template folder of a family."""
    registry = get_registry()
    names = [family] if family else [s.name for s in registry.specs("family")]
    able = {name: registry.create("family", name).template for name in names}
    able = {name: template for name, template in able.items() if template}
    if len(able) != 1:
        what = f"the family {family!r} has no template" if family else f"{len(able)} families have a template"
        raise UsageError(f"{what} of a plugin", f"choose with --family: {', '.join(able) or 'none has one'}")
    package, _, path = next(iter(able.values())).partition(":")
    return files(package) / path


def _files(folder: Traversable, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (path in parts, text) of every template file."""
    for item in sorted(folder.iterdir(), key=lambda i: i.name):
        if item.is_dir():
            yield from _files(item, (*above, item.name))
        elif item.name.endswith(SUFFIX):
            yield (*above, item.name), item.read_text(encoding="utf-8")
