"""One forward pass over a micro-batch: the student end to end, or site by site as the teacher's values arrive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch

from xarch.contracts.batch import Batch
from xarch.contracts.local import LocalStudent
from xarch.contracts.model import Sink, Student
from xarch.engine.teacher import MAIN, Autocast, TeacherFeed
from xarch.engine.terms import Right, Term
from xarch.matching.pairing import Reference
from xarch.matching.references import BATCH, STUDENT

Use = Callable[[Sequence[Term], Mapping[str, Any], Right], None]
"""Called with the terms, the student's values by the names in their pairs, and a getter for the referenced values."""

Values = dict[tuple[str, str], Any]
"""(model, tap) -> value."""


class SiteStream:
    """Passes teacher values to sites. A site runs as soon as its teacher values exist; values that no other site needs
    are then released, so peak memory is that of one site, however many there are.

    Args:
        needs: site -> teacher taps by full name, inputs of the site included.
    """

    def __init__(self, needs: Mapping[str, set[str]]) -> None:
        self.needs = needs
        self.taps: set[str] = set().union(*needs.values()) if needs else set()
        self._readers = Counter(tap for taps in needs.values() for tap in taps)

    def run(
        self, feed: Callable[[Collection[str], Sink], None], on_site: Callable[[str, dict[str, Any]], None]
    ) -> None:
        """Run the teacher by ``feed`` (taps, sink) and call ``on_site`` (site, values by full name) for every site in
        the order in which their inputs appear."""
        readers = Counter(self._readers)
        held: dict[str, Any] = {}
        waiting = {site: set(taps) for site, taps in self.needs.items()}

        def take(tap: str, value: Any) -> None:
            held[tap] = value
            ready = [site for site, missing in waiting.items() if tap in missing and len(missing) == 1]
            for site, missing in waiting.items():
                if site not in ready:
                    missing.discard(tap)
            for site in ready:
                del waiting[site]
                on_site(site, {name: held[name] for name in self.needs[site]})
                for name in self.needs[site]:
                    readers[name] -= 1
                    if not readers[name]:
                        held.pop(name, None)

        feed(self.taps, take)


class Walk(ABC):
    """Performs the forward passes of a stage.

    Args:
        student: the model being trained.
        terms: of the stage.
        feed: its teachers.
        autocast: precision of forward passes.
    """

    def __init__(self, student: Student, terms: Sequence[Term], feed: TeacherFeed, autocast: Autocast) -> None:
        self.student, self.terms, self.feed, self.autocast = student, terms, feed, autocast
        self.ahead: dict[str, set[str]] = {}
        for reference in (r for t in terms for r in t.references):
            if reference.model not in (BATCH, STUDENT):
                self.ahead.setdefault(reference.model, set()).add(reference.name)

    def teachers(self, part: Batch) -> Values:
        """Return the teacher values that are needed before the student runs."""
        values: Values = {}
        for model, taps in self.ahead.items():
            self.feed.run(part, taps, lambda name, value, m=model: values.__setitem__((m, name), value), model)  # type: ignore[misc]
        return values

    @abstractmethod
    def run(
        self, part: Batch, seen: Batch, values: Values, terms: Collection[Term], use: Use, *, left: bool = True
    ) -> None:
        """Run one pass, with gradients where they are enabled.

        Args:
            part, seen: the micro-batch with all views, and as the student sees it.
            values: returned by :meth:`teachers`.
            terms: the terms to compute.
            use: called once, or once per site.
            left: whether the student side of the terms is needed, or only the values they refer to.
        """


class GlobalWalk(Walk):
    """Runs the student end to end."""

    def run(
        self, part: Batch, seen: Batch, values: Values, terms: Collection[Term], use: Use, *, left: bool = True
    ) -> None:
        wanted = _referenced(terms) | ({tap for t in terms for tap in t.pair.student} if left else set())
        with self.autocast():
            student = self.student.collect(seen, wanted) if wanted else {}
            use(list(terms), student, _right(values, student, seen))


class LocalWalk(Walk):
    """Runs each site on the teacher's input at the same place."""

    def __init__(self, student: Student, terms: Sequence[Term], feed: TeacherFeed, autocast: Autocast) -> None:
        super().__init__(student, terms, feed, autocast)
        assert isinstance(student, LocalStudent), "the plan has proven that the student has sites"
        self.local = student
        self.ahead.pop(MAIN, None)
        sites = student.sites()
        needs: dict[str, set[str]] = {}
        for term in terms:
            site = str(term.pair.site)
            main = {r.name for r in term.references if r.model == MAIN}
            needs.setdefault(site, set(sites[site].inputs.values())).update(main)
        self.stream = SiteStream(needs)

    def run(
        self, part: Batch, seen: Batch, values: Values, terms: Collection[Term], use: Use, *, left: bool = True
    ) -> None:
        sites = self.local.sites()
        grad = torch.is_grad_enabled()
        by_site: dict[str, list[Term]] = {}
        for term in terms:
            by_site.setdefault(str(term.pair.site), []).append(term)

        def on_site(site: str, given: dict[str, Any]) -> None:
            mine = by_site.get(site, [])
            wanted = _referenced(mine) | ({tap for t in mine for tap in t.pair.student} if left else set())
            with torch.set_grad_enabled(grad):
                student: Mapping[str, Any] = {}
                if wanted:
                    inputs = {local: given[name] for local, name in sites[site].inputs.items()}
                    student = self.local.run_site(site, inputs, wanted, seen)
                here = {**values, **{(MAIN, name): value for name, value in given.items()}}
                use(mine, student, _right(here, student, seen))

        with self.autocast():
            self.stream.run(lambda taps, sink: self.feed.run(part, taps, sink), on_site)


def _referenced(terms: Iterable[Term]) -> set[str]:
    """Return the student taps that terms refer to."""
    return {r.name for t in terms for r in t.references if r.model == STUDENT}


def _right(values: Values, student: Mapping[str, Any], seen: Batch) -> Right:
    def value(reference: Reference) -> Any:
        if reference.model == BATCH:
            return seen[reference.name]
        return student[reference.name] if reference.model == STUDENT else values[reference.model, reference.name]

    return value
