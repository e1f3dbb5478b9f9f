"""Methods: every folder here with a ``method.yaml`` is one. Nothing else has to be edited to add one.

A folder named ``ofa_kd`` is the method ``ofa-kd``. What is new in it besides the YAML (an objective, a connector)
stands in Python modules of the folder, registered by a ``register(registry)`` of its ``__init__.py``.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from xarch import hookimpl

ROOT = Path(__file__).parent
HEAD = "method.yaml"
LONGEST = 4096
"""Characters of a file in which its head ends: lists read it at every start, without a YAML parser."""
_VALUE = re.compile(r"^  (summary|families): *(.*?) *$", re.MULTILINE)


@hookimpl
def xarch_register(registry: Any) -> None:
    """A method for every folder, and what the folder registers besides."""
    for folder in sorted(path.parent for path in ROOT.glob(f"*/{HEAD}")):
        head = dict(_VALUE.findall((folder / HEAD).read_text(encoding="utf-8")[:LONGEST]))
        registry.method(
            folder.name.replace("_", "-"),
            load=f"{__name__}:{folder.name}/{HEAD}",
            summary=head.get("summary", "").strip("\"'"),
            families=re.findall(r"[\w-]+", head.get("families", "")),
        )
        if (folder / "__init__.py").is_file():
            importlib.import_module(f"{__name__}.{folder.name}").register(registry)
