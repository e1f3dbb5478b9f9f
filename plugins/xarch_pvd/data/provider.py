"""Data ``views:``: points of occupied cells and rays of random cameras, sampled from the teacher alone.

Training reads no images. ``views:teacher`` uses the cameras in the teacher's facts; ``views:demo`` too, with images of
the demo's procedural scene to evaluate teacher and student; ``views:FOLDER`` uses a folder of posed images, whose
held-out images serve the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xarch import BatchStream, DataInfo, DataProvider, DataRequest, TensorInfo, UsageError, validated
from xarch_field.facts import ViewFacts
from xarch_field.teacher import FieldTeacher
from xarch_pvd.data.fixed import Checks, Pictures, ScenePictures
from xarch_pvd.data.points import Points
from xarch_pvd.data.posed_views import PosedViews, posed_views
from xarch_pvd.data.rays import Rays
from xarch_pvd.data.sampling import FieldSample, ViewOptions

TENSORS = {
    "points": {key: TensorInfo("NC", {"C": 3}) for key in ("xyz", "dirs")},
    "rays": {key: TensorInfo("RC", {"C": 3}) for key in ("origins", "dirs", "background")},
}
"""Tensors of a batch by kind of sample: N points, R rays, C coordinates or colours."""

AROUND = {
    "teacher": "cameras around the teacher, without images",
    "demo": "cameras around the teacher; images of the procedural scene for the evaluation alone",
}
"""References whose cameras are the teacher's own."""


def _whole_view(request: DataRequest) -> dict[str, int]:
    """What a plan must know of held-out samples: each is a whole view."""
    views = getattr(request.facts, "views", None)
    return {} if views is None else {"heldout_units": views.width * views.height}


class Views(DataProvider):
    """Opens ``views:teacher``, ``views:demo`` and ``views:FOLDER``."""

    Options = ViewOptions
    Sample = FieldSample

    def describe(self, request: DataRequest) -> DataInfo:
        tensors = TENSORS[_sample(request.sample).kind]
        if request.ref in AROUND:
            return DataInfo(AROUND[request.ref], request.ref, "sample", tensors=tensors, facts=_whole_view(request))
        posed = _posed(request, getattr(request.facts, "views", None))
        size = {"heldout_views": len(posed.heldout), "heldout_pictures": posed.pictures}
        return DataInfo(
            f"cameras of {request.ref}",
            posed.digest,
            "sample",
            size,
            tensors=tensors,
            facts={**size, **_whole_view(request)},
            warnings=posed.notes(request.ref),
        )

    def units_per_sample(self, sample: Mapping[str, Any]) -> int:
        """Return one: a point or a ray.

        Raises:
            UsageError: the sample options are invalid; the plan calls this, so a run never starts with them.
        """
        _sample(sample)
        return 1

    def open(self, request: DataRequest) -> BatchStream:
        teacher = request.teacher
        if not isinstance(teacher, FieldTeacher):
            raise UsageError(f"views: samples from a radiance field, but the teacher is a {type(teacher).__name__}")
        wanted = _sample(request.sample)
        posed = None if request.ref in AROUND else _posed(request, teacher.facts.views)
        options: ViewOptions = request.options
        views = teacher.facts.views if posed is None else posed.facts
        if request.split == "heldout":
            # Images of the original scene cannot evaluate an edited one.
            if request.ref == "demo" and not teacher.facts.edits:
                return ScenePictures(teacher)
            return Pictures(teacher, None if teacher.facts.edits else posed)
        if request.split != "train":
            return Checks(teacher, wanted, request.samples, views, request.split)
        if wanted.kind == "points":
            return Points(teacher, request.samples, request.seed, options, wanted, views)
        return Rays(teacher, request.samples, request.seed, options, wanted, views, posed)


def _posed(request: DataRequest, field: ViewFacts | None) -> PosedViews:
    """Open the folder's cameras in the world of its field."""
    options: ViewOptions = request.options
    world, world_of = (field.world, field.world_of) if field is not None else ((), "folder")
    return posed_views(request.ref, world, world_of, options.downscale, options.format, options.world_scale)


def _sample(sample: Mapping[str, Any]) -> FieldSample:
    return validated(FieldSample, sample, "sample")
