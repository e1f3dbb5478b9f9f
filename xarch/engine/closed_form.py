"""Stage kind ``closed_form``: fit each site with the target's solver as teacher values arrive, without gradients."""

from __future__ import annotations

from typing import Any

import torch

from xarch.contracts.batch import Batch
from xarch.contracts.stage import StageContext, StageKind, StageOutcome, StageRequest
from xarch.engine.walks import SiteStream


class ClosedForm(StageKind):
    """Solves each site after its solver has observed all batches, then releases the solver's data. An interrupted stage
    restarts from its beginning.
    """

    solves = True

    def units(self, request: StageRequest) -> int:
        """Return the stage's budget, or one batch if it sets none."""
        return request.settings.batch.size * request.units_per_sample if request.budget is None else request.budget

    def run(self, context: StageContext) -> StageOutcome:
        solvers = {site: context.solver(site) for site in context.sites}
        stream = SiteStream({site: set(s.inputs) for site, s in solvers.items()})
        per_site: dict[str, dict[str, float]] = {}
        total, done = context.steps * len(solvers), 0
        batches = context.batches()
        context.student.module.eval()

        def observe(batch: Batch, last: int) -> None:
            def on_site(site: str, given: dict[str, Any]) -> None:
                nonlocal done
                solvers[site].observe(given, seen)
                if last:
                    figures = solvers.pop(site).solve()
                    for name, value in figures.items():
                        per_site.setdefault(name, {})[site] = value
                    context.log(last, **{f"site.{site}.{k}": v for k, v in figures.items()})
                done += 1
                context.progress(done, total, site)

            seen = batch.seen_by("student")
            stream.run(lambda taps, sink: context.run_teacher(batch, taps, sink), on_site)

        with torch.no_grad():
            for step in range(context.steps):
                last = step + 1 if step + 1 == context.steps else 0
                observe(context.prepare(next(batches), step), last)
        means = {name: sum(values.values()) / len(values) for name, values in per_site.items() if values}
        return StageOutcome(metrics=means, per_site=per_site)
