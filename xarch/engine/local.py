"""One micro-batch of a local stage: as soon as the teacher has given what a site needs, the site runs forward and
backward and its graph is dropped. Peak memory is one site's graph, whatever the number of sites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from xarch.contracts.batch import Batch
from xarch.contracts.model import Student
from xarch.engine.teacher import TeacherFeed
from xarch.matching.pairing import Pair

OnSite = Callable[[str, dict[str, Any], dict[str, Any]], None]
"""Called with (site, student values by local name, teacher values by full name)."""


class SiteWalk:
    """Which teacher taps each site needs, and the walk that hands them out.

    Args:
        student: its sites are run.
        needs: site -> teacher taps by full name, inputs of the site included.
        wanted: site -> local student taps to compute; empty means the site is not run (closed-form solvers).
    """

    def __init__(self, student: Student, needs: Mapping[str, set[str]], wanted: Mapping[str, set[str]]) -> None:
        self.student, self.needs, self.wanted = student, needs, wanted
        self.taps = set().union(*needs.values()) if needs else set()
        self._readers = Counter(tap for taps in needs.values() for tap in taps)

    @classmethod
    def for_pairs(cls, student: Student, pairs: Sequence[Pair]) -> SiteWalk:
        """The walk of a gradient stage."""
        sites = student.sites()
        needs: dict[str, set[str]] = {}
        wanted: dict[str, set[str]] = {}
        for pair in pairs:
            assert pair.site is not None
            needs.setdefault(pair.site, set(sites[pair.site].inputs.values())).update(pair.teacher_taps)
            wanted.setdefault(pair.site, set()).add(pair.local)
        return cls(student, needs, wanted)

    def run(self, feed: TeacherFeed, batch: Batch, on_site: OnSite, *, grad: bool) -> None:
        """Run the teacher on ``batch`` and call ``on_site`` for every site in the order their inputs appear."""
        sites = self.student.sites()
        readers = Counter(self._readers)
        held: dict[str, Any] = {}
        waiting = {site: set(taps) for site, taps in self.needs.items()}
        seen = batch.seen_by("student")

        def take(tap: str, value: Any) -> None:
            held[tap] = value
            ready = [site for site, missing in waiting.items() if tap in missing and len(missing) == 1]
            for site, missing in waiting.items():
                if site not in ready:
                    missing.discard(tap)
            for site in ready:
                del waiting[site]
                given = {name: held[name] for name in self.needs[site]}
                values: dict[str, Any] = {}
                with torch.set_grad_enabled(grad):
                    if self.wanted.get(site):
                        inputs = {local: held[name] for local, name in sites[site].inputs.items()}
                        values = self.student.run_site(site, inputs, self.wanted[site], seen)
                    on_site(site, values, given)
                for name in self.needs[site]:
                    readers[name] -= 1
                    if not readers[name]:
                        held.pop(name, None)

        feed.run(batch, self.taps, take)
