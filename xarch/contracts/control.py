"""Controls: what a student must beat to have earned anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xarch.contracts.model import TapModel

TO_CONTROL = "_to_control"
"""Ending of the figures that divide the student's by the best control's."""


@dataclass(frozen=True)
class Control:
    """The teacher brought to the student's budget without training, evaluated beside the student.

    Attributes:
        model: in eval mode, without gradients; may share the teacher's tensors.
        facts: what it keeps and what it costs, as JSON for eval.json and the report: budget and precision belong here.
    """

    model: TapModel
    facts: Mapping[str, Any] = field(default_factory=dict)
