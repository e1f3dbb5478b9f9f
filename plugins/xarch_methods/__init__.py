"""Methods: every folder here with a ``method.yaml`` is one. Adding one needs no other edit.

A folder named ``ofa_kd`` is the method ``ofa-kd``. Any new objective or connector it needs lives in Python modules of
the folder and is registered by ``register(registry)`` in its ``__init__.py``.
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
"""Leading characters of a file that contain its head, which is read at every start without a YAML parser."""
_VALUE = re.compile(r"^  (summary|families): *(.*?) *$", re.MULTILINE)


@hookimpl
def xarch_register(registry: Any) -> None:
    """Register a method for every folder, and anything else the folder registers."""
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


@hookimpl
def xarch_modify_plan(plan: Any) -> None:
    """Add what a plan says of long-tailed data."""
    from xarch_methods.long_tail import checks

    plan.checks += checks(plan)
