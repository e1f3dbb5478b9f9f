"""Where a stage gets the teacher's values from: the teacher itself, or the cache in front of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any

import torch

from xarch.contracts.batch import Batch
from xarch.contracts.model import Sink, Teacher
from xarch.engine.teacher_cache import TeacherCache
from xarch.errors import PluginError


class TeacherFeed:
    """Plays the wanted teacher taps of a batch, without gradients, in forward order."""

    def __init__(
        self,
        teacher: Teacher,
        autocast: Callable[[], contextlib.AbstractContextManager[object]],
        cache: TeacherCache | None = None,
    ) -> None:
        self.teacher, self.autocast, self.cache = teacher, autocast, cache

    def play(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        """Push each wanted tap into ``sink``.

        Raises:
            PluginError: the teacher ended without giving every wanted tap.
        """
        if not wanted:
            return
        seen = batch.seen_by("teacher")
        if self.cache is None:
            self._live(seen, wanted, sink)
            return
        key = self.cache.key(seen, wanted)
        device = next(iter(seen.tensors.values())).device
        if not self.cache.play(key, wanted, device, sink):
            tee, kept = self.cache.recorder(sink)
            self._live(seen, wanted, tee)
            self.cache.write(key, kept)

    def _live(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        given: set[str] = set()

        def note(name: str, value: Any) -> None:
            given.add(name)
            sink(name, value)

        with torch.no_grad(), self.autocast():
            self.teacher.run(batch, wanted, note)
        missing = sorted(set(wanted) - given)
        if missing:
            raise PluginError(f"the teacher {self.teacher.ref} did not give the taps {', '.join(missing[:5])}")
