"""Facts of a radiance field: enough to build a student of another representation for the same scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from xarch import Tap, typed
from xarch_field.taps import EMPTY, EMPTY_EDITED, POINT_WORK, evaluated, field_taps

Pixels = Annotated[int, Field(ge=1, le=1 << 16)]
Coordinate = Annotated[float, Field(ge=-1e9, le=1e9)]
Distance = Annotated[float, Field(ge=0, le=1e9)]
Corner = tuple[Coordinate, Coordinate, Coordinate]
Shade = Annotated[float, Field(ge=0, le=1)]
Rows = Annotated[tuple[Coordinate, ...], Field(min_length=12, max_length=12)]
World = Annotated[tuple[Coordinate, ...], Field(max_length=13)]
LogDensity = Annotated[float, Field(ge=-1e4, le=90)]
"""Its exponential is a finite float32."""
Cells = Annotated[int, Field(ge=1, le=1024)]
Steps = Annotated[int, Field(ge=1, le=1 << 16)]


@dataclass(frozen=True)
class ViewFacts:
    """The cameras from which a field is viewed.

    Attributes:
        width, height: image size in pixels.
        focal: focal length in image widths.
        radius: nearest and farthest camera distance from ``target``, world units.
        target: the point that cameras look at.
        poses: the teacher's own training cameras (camera-to-world rows, 12 numbers each), for scenes viewed
            from inside; without poses, cameras lie on a sphere.
        world: map from the camera world of the images to the field's world, x -> scale (R x + t): the rows of [R | t]
            and the scale, 13 numbers; empty if both worlds are the same.
        world_of: the camera world that ``world`` maps from: that of the "folder" as read; that of the "capture", before
            the rotation and scale that transforms.json records as applied; or "torch-ngp", rotated as that program
            does, with a scale that no file records.
    """

    width: Pixels = 100
    height: Pixels = 100
    focal: Annotated[float, Field(gt=0, le=1e6)] = 1.39
    radius: tuple[Distance, Distance] = (3.2, 3.2)
    target: Corner = (0.0, 0.0, 0.0)
    poses: Annotated[tuple[Rows, ...], Field(max_length=100_000)] = ()
    world: World = ()
    world_of: str = "folder"

    def __post_init__(self) -> None:
        if len(self.world) not in (0, 13):
            raise ValueError(f"a map between worlds has 13 numbers, this one {len(self.world)}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ViewFacts:
        """Build from plain data.

        Raises:
            UsageError: unknown keys, other types, or numbers beyond their bounds.
        """
        return typed(cls, data, "view facts")


@dataclass(frozen=True)
class FieldFacts:
    """A teacher field without its weights.

    Attributes:
        arch: representation of the teacher ("hash", "vm", ...).
        options: options of that representation, plain data.
        aabb: lower and upper corner of the box, world units.
        warp, warp_parameters: mapping from world points to the unit cube.
        sigma_clip: bounds to which the raw log-density is clipped before exp.
        background: colour behind the field.
        occupancy: cells of the occupancy grid per axis.
        feature: whether it has the 16-value volume feature.
        samples: steps per ray.
        edits: edits made to the field after training, which images of the scene do not show.
        inherits: blocks of the representation that a student may inherit; None means all.
        views: cameras of the scene.
    """

    arch: str
    aabb: tuple[Corner, Corner]
    options: dict[str, Any] = field(default_factory=dict)
    warp: str = "aabb"
    warp_parameters: Annotated[tuple[float, ...], Field(max_length=3)] = ()
    sigma_clip: tuple[LogDensity, LogDensity] = (-2.0, 7.0)
    background: tuple[Shade, Shade, Shade] = (1.0, 1.0, 1.0)
    occupancy: Cells = 64
    feature: bool = True
    samples: Steps = 128
    edits: tuple[str, ...] = ()
    inherits: tuple[str, ...] | None = None
    views: ViewFacts = field(default_factory=ViewFacts)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without loss."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FieldFacts:
        """Invert :meth:`to_json`.

        Raises:
            UsageError: unknown keys, other types, or numbers beyond their bounds.
        """
        return typed(cls, data, "field facts")

    def tiny(self) -> FieldFacts:
        """Return the same field with a coarse occupancy grid and few samples, for trial exports."""
        return replace(self, occupancy=8, samples=8, views=replace(self.views, poses=()))

    def work(self, sample: Mapping[str, Any]) -> float:
        """Return approximate multiply-adds per point or ray, independent of the representation."""
        return POINT_WORK * evaluated(sample, self.samples)

    def taps(self) -> dict[str, Tap]:
        """Return the taps of a field with these facts, by name."""
        return field_taps(feature=self.feature, samples=self.samples, empty=self.empty)

    @property
    def empty(self) -> float:
        """Return the log-density at or below which a point counts as empty.

        A student that stops at e⁻² leaves a haze in occupied cells. It is invisible around matter but noticeable where
        matter was erased.
        """
        return EMPTY_EDITED if self.edits else EMPTY
