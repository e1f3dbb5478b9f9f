"""Data ``views:``: points of the occupied cells and rays of random cameras, drawn from the teacher alone.

No picture is read for training. ``views:teacher`` takes the cameras of the teacher's facts; ``views:FOLDER`` a folder
of posed pictures, whose held-out pictures then also judge teacher and student.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel

from xarch import BatchStream, DataInfo, DataProvider, UsageError, validated
from xarch_field.teacher import FieldTeacher
from xarch_pvd.data.drawn import FieldSample, ViewOptions
from xarch_pvd.data.fixed import Checks, Pictures
from xarch_pvd.data.points import Points
from xarch_pvd.data.posed_views import posed_views
from xarch_pvd.data.rays import Rays


class Views(DataProvider):
    """Opens ``views:teacher`` and ``views:FOLDER``."""

    Options = ViewOptions

    def describe(self, ref: str, options: BaseModel) -> DataInfo:
        if ref == "teacher":
            return DataInfo("cameras around the teacher, no pictures", "teacher", "sample")
        posed = posed_views(ref)
        pictures = len(posed.heldout) if posed.pictured else 0
        return DataInfo(f"cameras of {ref}", posed.digest, "sample", {"heldout_pictures": pictures})

    def units_per_sample(self, sample: Mapping[str, Any]) -> int:
        """One: a point or a ray.

        Raises:
            UsageError: the sample is described wrongly; asked while planning, so that nothing runs on it.
        """
        _sample(sample)
        return 1

    def open(
        self,
        ref: str,
        options: BaseModel,
        *,
        split: str,
        samples: int,
        sample: Mapping[str, Any],
        processors: Mapping[str, Any],
        seed: int,
        teacher: Any = None,
    ) -> BatchStream:
        if not isinstance(teacher, FieldTeacher):
            raise UsageError(f"views: draws from a radiance field, the teacher is {type(teacher).__name__}")
        wanted = _sample(sample)
        posed = None if ref == "teacher" else posed_views(ref)
        chosen = cast(ViewOptions, options)
        views = teacher.facts.views if posed is None else posed.facts
        if split == "heldout":
            # Pictures of a scene are no measure of what it became.
            return Pictures(teacher, None if teacher.facts.edits else posed)
        if split == "validation":
            return Checks(teacher, wanted, samples, views)
        if wanted.kind == "points":
            return Points(teacher, samples, seed, chosen, wanted, views)
        return Rays(teacher, samples, seed, chosen, wanted, views, posed)


def _sample(sample: Mapping[str, Any]) -> FieldSample:
    return validated(FieldSample, sample, "sample")
