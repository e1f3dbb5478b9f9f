"""Student that is a radiance field."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from xarch import Student
from xarch_field.facts import FieldFacts
from xarch_field.model.field import RadianceField
from xarch_field.teacher import FieldModel, FieldTeacher


class FieldStudent(FieldModel, Student):
    """A field trained to match another one; it has no sites for local training.

    Args:
        options: constructor options of the field, for a fresh copy of the same shape.
    """

    def __init__(self, field: RadianceField, facts: FieldFacts, options: Any = None) -> None:
        super().__init__(field, facts)
        self.options = options

    def facts_as_teacher(self) -> FieldFacts:
        """Return the scene's box and cameras with this field's own representation."""
        field = self.field
        return replace(
            self.facts, arch=field.arch, options=dict(field.options), feature=field.has_feature, inherits=None
        )

    def as_teacher(self, ref: str, fingerprint: str, processor: Any = None) -> FieldTeacher:
        """Return the finished student as the teacher of the next conversion, with frozen parameters."""
        field = self.field.eval().requires_grad_(False)
        return FieldTeacher(field, self.facts_as_teacher(), ref=ref, fingerprint=fingerprint)

    def param_groups(self) -> Mapping[str, list[str]]:
        return self.field.param_groups()

    def no_decay(self) -> Collection[str]:
        """Return grids and tables: weight decay would pull cells that no sample visits towards density 1."""
        return [*super().no_decay(), *self.field.param_groups().get("grid", [])]
