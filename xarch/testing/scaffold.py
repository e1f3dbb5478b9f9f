"""``xarch new plugin``: a working target plugin whose conformance tests pass before a line is changed."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path
from string import Template

from xarch._version import __version__
from xarch.errors import UsageError
from xarch.files.atomic import new_folder

TEMPLATES, TEMPLATE = "xarch_decoder.testing", "template"
SUFFIX = ".tmpl"


def write_plugin(name: str, folder: Path) -> list[Path]:
    """Write the package of plugin ``name`` into ``folder``; returns the files.

    Args:
        name: letters, digits, ``-`` and ``_``, e.g. "rwkv7"; a leading "xarch-" is dropped.

    Raises:
        UsageError: the name cannot be a Python module, or the folder exists.
    """
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
    written = []
    with new_folder(folder) as part:
        for source, target in _FILES.items():
            text = (files(TEMPLATES) / TEMPLATE / (source + SUFFIX)).read_text(encoding="utf-8")
            path = part / Template(target).substitute(values)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).substitute(values), encoding="utf-8")
            written.append(folder / path.relative_to(part))
    return written


_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "init.py": "$module/__init__.py",
    "mixer.py": "$module/mixer.py",
    "target.py": "$module/target.py",
    "recipe.yaml": "$module/recipe.yaml",
    "test_conformance.py": "tests/test_conformance.py",
}
