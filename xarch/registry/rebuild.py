"""A student with the architecture of any model, for targets that change parts of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xarch.errors import PlanError
from xarch.registry.loader import get_registry

if TYPE_CHECKING:
    from pydantic import BaseModel

    from xarch.contracts.adapters import TargetAdapter


def rebuilder(facts: Any) -> tuple[TargetAdapter, BaseModel]:
    """Return a target whose students have exactly the architecture and the weights of a model with these facts, and its
    options; plugins provide it by the hook ``xarch_rebuild``. ``Student.replaceable`` names the parts to change.

    Raises:
        PlanError: no plugin can rebuild it.
    """
    found: tuple[TargetAdapter, BaseModel] | None = get_registry().call("xarch_rebuild", facts=facts)
    if found is None:
        name = getattr(facts, "arch", type(facts).__name__)
        raise PlanError(
            f"no plugin can rebuild a model with these facts ({name}), so its parts cannot be replaced",
            "choose a teacher of another source, or implement the hook xarch_rebuild for it",
        )
    return found
