"""Source of teacher values for a stage: the teacher itself, or its cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch

from xarch.contracts.batch import Batch
from xarch.contracts.model import Sink, TapModel
from xarch.engine.guards import FiniteValues
from xarch.engine.teacher_cache import TeacherCache
from xarch.errors import PluginError

MAIN = ""
"""Name of the teacher from which the student is built."""

Autocast = Callable[[], contextlib.AbstractContextManager[object]]


@dataclass
class TeacherFeed:
    """Provides the taps of a stage's teachers, without gradients, in forward order.

    Attributes:
        models: teachers by name; "" is the main one. Copies of the student ("ema", "self") are among them.
        autocast: precision of forward passes.
        caches: teacher -> its cache.
        copies: names of copies of the student, which read what the student reads.
    """

    models: Mapping[str, TapModel]
    autocast: Autocast
    caches: Mapping[str, TeacherCache] = field(default_factory=dict)
    copies: Collection[str] = ()

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink, model: str = MAIN) -> None:
        """Push each requested tap of one teacher into ``sink``; if none is requested, the teacher does not run.

        Args:
            batch: with all views; a teacher reads ``NAME@teacher``, a copy of the student ``NAME@student``, and one of
                several ``NAME@MODEL`` where the batch has such views.

        Raises:
            DivergedError: a value is not finite.
            PluginError: the teacher finished without producing every requested tap.
        """
        if not wanted:
            return
        seen = batch.seen_by(model, "student" if model in self.copies else "teacher")
        cache = self.caches.get(model)
        if cache is None:
            self._live(model, seen, wanted, sink)
        else:
            cache.push(seen, wanted, sink, lambda tee: self._live(model, seen, wanted, tee))

    def _live(self, model: str, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        given: set[str] = set()
        who = f"teacher {model!r}" if model else "the teacher"
        values = FiniteValues(sink, who, self.models[model])

        def note(name: str, value: object) -> None:
            given.add(name)
            values(name, value)

        with torch.no_grad(), self.autocast(), values.checked():
            self.models[model].run(batch, wanted, note)
        missing = sorted(set(wanted) - given)
        if missing:
            raise PluginError(f"{who} did not produce the taps {', '.join(missing[:5])}")
