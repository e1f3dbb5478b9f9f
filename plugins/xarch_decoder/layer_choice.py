"""Which layers of a decoder are replaced: an option of targets.

``layers: all``, or one of replace, keep, every, choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from xarch import Options, PlanError


class Layers(Options):
    """Layers whose attention is replaced; without any key, all of them."""

    replace: list[int] | None = Field(None, min_length=1, description="replace these layers")
    keep: list[int] | None = Field(None, min_length=1, description="replace all layers except these")
    every: int | None = Field(
        None, ge=1, description="replace every n-th layer, starting at n // 2: 3 means 1, 4, 7, ..."
    )
    choose: Literal["kl"] | None = Field(None, description="let a stage of kind kl_probe choose `count` layers")
    count: int | None = Field(None, ge=1, le=2048, description="number of layers for `choose`")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        if data == "all":
            return {}
        if not isinstance(data, Mapping | Layers):
            raise ValueError("expected `all`, or a mapping such as {every: 3} or {choose: kl, count: 10}")
        return data

    @model_validator(mode="after")
    def _one_rule(self) -> Layers:
        given = [key for key in ("replace", "keep", "every", "choose") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"set only one of replace, keep, every and choose, got {' and '.join(given)}")
        if (self.count is not None) != (self.choose is not None):
            raise ValueError("`choose` and `count` must be set together, as in {choose: kl, count: 10}")
        return self

    def replaced(self, layers: int) -> list[int]:
        """Return the layers to replace, out of ``layers``; all of them while a choice is pending.

        Raises:
            PlanError: a layer does not exist, or nothing would be replaced.
        """
        everything = list(range(layers))
        outside = sorted(set(self.replace or self.keep or []) - set(everything))
        if outside:
            raise PlanError(f"student.options.layers: {outside} are not layers of a decoder with {layers}")
        if self.count is not None and self.count > layers:
            raise PlanError(f"student.options.layers.count: {self.count} layers of a decoder with {layers}")
        if self.replace is not None:
            return sorted(set(self.replace))
        if self.keep is not None:
            everything = sorted(set(everything) - set(self.keep))
        elif self.every is not None:
            everything = everything[self.every // 2 :: self.every]
        if not everything:
            raise PlanError(
                f"student.options.layers: {self.model_dump(exclude_none=True)} leaves no layer of {layers} to replace",
                "select at least one layer: an unchanged teacher needs no conversion",
            )
        return everything

    def tiny(self) -> Layers:
        """Return the same kind of rule for a decoder of two layers."""
        if self.choose is not None:
            return Layers(choose=self.choose, count=1)
        if self.replace is not None or self.keep is not None or (self.every or 1) > 1:
            return Layers(replace=[1])
        return self


class LayerOptions(Options):
    """Options of targets that replace the attention of some layers."""

    layers: Layers = Field(Layers(), description="`all`, or one of replace, keep, every, choose")

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, data: Any) -> Any:
        return Layers.model_validate(data)
