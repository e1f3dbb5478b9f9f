"""Models built anew around tensors that exist already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from xarch import Student, rebuilder


def plain(facts: Any, device: torch.device) -> Student:
    """Return the model with these facts as it is, with new weights.

    Raises:
        PlanError: no plugin can rebuild it.
    """
    adapter, options = rebuilder(facts)
    return adapter.build(facts, options, {}, device=device)


def sharing(
    facts: Any,
    tensors: Mapping[str, Tensor],
    device: torch.device,
    change: Callable[[Student], None] = lambda model: None,
) -> Student:
    """Return the model with these facts, changed, on given tensors; frozen and in eval mode.

    Nothing is allocated, unless the model computes buffers that no file holds.

    Args:
        tensors: of its state after ``change``, those that ``change`` gave it left out.
        device: of the tensors.
    """
    made = _filled(plain(facts, torch.device("meta")), tensors, change)
    if device.type != "meta" and any(t.is_meta for t in (*made.module.parameters(), *made.module.buffers())):
        made = _filled(plain(facts, device), tensors, change)
    made.module.eval().requires_grad_(False)
    return made


def _filled(model: Student, tensors: Mapping[str, Tensor], change: Callable[[Student], None]) -> Student:
    change(model)
    model.module.load_state_dict(tensors, strict=False, assign=True)
    return model
