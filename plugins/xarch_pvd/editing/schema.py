"""Schema of the list of edits that a user writes.

    - erase: {box: [[-0.8, -0.8, -0.6], [0.8, 0.8, -0.3]]}
    - crop: {sphere: {centre: [0, 0, 0], radius: 0.9}}
    - affine: {scale: 0.5, rotate: {z: 30}, translate: [0.4, 0, 0]}
    - compose: {with: other.safetensors, mode: max, edits: [{affine: {translate: [0, 0, 1]}}]}

Lengths are world units of the field, angles degrees. Edits are applied in the order of the list.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, model_validator

from xarch import Options, UsageError, parse_yaml, regular_text, validated

Vector = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
MAX_BYTES, MAX_EDITS, MAX_DEPTH = 1 << 20, 64, 8


class SphereOptions(Options):
    """A ball."""

    centre: Vector
    radius: FiniteFloat = Field(gt=0)


class Region(Options):
    """A box, given by its lower and upper corner, or a sphere."""

    box: tuple[Vector, Vector] | None = None
    sphere: SphereOptions | None = None

    @model_validator(mode="after")
    def _one(self) -> Region:
        if (self.box is None) == (self.sphere is None):
            raise ValueError("expected either a box or a sphere")
        if self.box is not None and not all(a < b for a, b in zip(*self.box, strict=True)):
            raise ValueError("the box is empty: expected [[x0, y0, z0], [x1, y1, z1]] with x0 < x1 on every axis")
        return self


class Erase(Region):
    """Removes everything inside the region."""


class Crop(Region):
    """Removes everything outside the region and shrinks the field's box to it."""


class Affine(Options):
    """Scales, rotates about x, y and z in this order, then translates; or applies a matrix [3, 3] or [3, 4]."""

    scale: FiniteFloat | Vector = 1.0
    rotate: dict[Literal["x", "y", "z"], FiniteFloat] = Field({}, description="degrees by axis")
    translate: Vector = (0.0, 0.0, 0.0)
    about: Vector | None = Field(None, description="fixed point of scale and rotation; default the centre of the field")
    matrix: tuple[tuple[FiniteFloat, ...], tuple[FiniteFloat, ...], tuple[FiniteFloat, ...]] | None = None

    @model_validator(mode="after")
    def _either(self) -> Affine:
        others = self.model_fields_set - {"matrix"}
        if self.matrix is not None and others:
            raise ValueError(
                f"a matrix defines the whole transform; it cannot be combined with {', '.join(sorted(others))}"
            )
        if self.matrix is not None and {len(row) for row in self.matrix} not in ({3}, {4}):
            raise ValueError("a matrix has three rows of 3 numbers, or of 4 with the translation last")
        return self


class Compose(Options):
    """Adds another field: densities are summed or the maximum is used; colours are weighted by density."""

    with_: str = Field(alias="with", description="field:FILE, or a run")
    mode: Literal["sum", "max"] = "sum"
    edits: list[dict[str, Any]] = Field([], description="edits of the other field")


EDITS: dict[str, type[BaseModel]] = {"erase": Erase, "crop": Crop, "affine": Affine, "compose": Compose}


def read_edits(given: str | Sequence[Any], where: str = "edits") -> list[dict[str, BaseModel]]:
    """Read edits from a list, from its text, or from a YAML or JSON file.

    Returns:
        One ``{name: options}`` for each edit.

    Raises:
        UsageError: the file does not exist, an edit is unknown, or options are wrong; names the position in the list.
    """
    return _edits(_parsed(given, where) if isinstance(given, str) else given, where, 0)


def plain(edits: Sequence[Mapping[str, BaseModel]]) -> list[dict[str, Any]]:
    """Convert edits to plain data that :func:`read_edits` accepts."""
    return [
        {name: options.model_dump(mode="json", by_alias=True, exclude_unset=True) for name, options in edit.items()}
        for edit in edits
    ]


def _edits(given: Any, where: str, depth: int) -> list[dict[str, BaseModel]]:
    if not isinstance(given, list | tuple):
        raise UsageError(f"{where} is {_short(given)}, expected a list of edits", _example())
    if len(given) > MAX_EDITS or depth > MAX_DEPTH:
        raise UsageError(
            f"{where} has {len(given)} edits at depth {depth}, but the limits are {MAX_EDITS} and {MAX_DEPTH}"
        )
    return [_edit(item, f"{where}[{i}]", depth) for i, item in enumerate(given)]


def _edit(item: Any, where: str, depth: int) -> dict[str, BaseModel]:
    if not isinstance(item, Mapping) or len(item) != 1:
        raise UsageError(f"{where} is {_short(item)}, expected one edit: its name and its options", _example())
    name, options = next(iter(item.items()))
    if name not in EDITS:
        near = difflib.get_close_matches(str(name), EDITS, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"{where}: unknown edit {name!r}{guess}", f"edits: {', '.join(EDITS)}")
    if not isinstance(options, Mapping):
        raise UsageError(f"{where}.{name} is {_short(options)}, expected its options", _example())
    read = validated(EDITS[name], options, f"{where}.{name}")
    if isinstance(read, Compose):
        _edits(read.edits, f"{where}.compose.edits", depth + 1)
    return {name: read}


def _parsed(text: str, where: str) -> Any:
    source = where
    if not text.lstrip().startswith("["):
        path = Path(text).expanduser()
        source = str(path)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise UsageError(f"{path} is larger than {MAX_BYTES} bytes, too large for a list of edits")
            text = regular_text(path)
        except FileNotFoundError:
            raise UsageError(f"{where}: file {path} does not exist", _example()) from None
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"{where}: {path} cannot be read: {e}", "write the edits as a YAML list") from e
    try:
        return parse_yaml(text, source).data
    except UsageError as e:
        raise UsageError(e.what, _example()) from e


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _example() -> str:
    return "for example [{erase: {box: [[-1, -1, -1], [1, 1, 0]]}}]"
