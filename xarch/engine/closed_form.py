"""Stage kind ``closed_form``: fit each site by its target's solver while the teacher streams by. No gradients."""

from __future__ import annotations

from typing import Any

import torch

from xarch.contracts.stage import StageContext, StageKind, StageOutcome
from xarch.engine.context import EngineContext
from xarch.engine.local import SiteWalk


class ClosedForm(StageKind):
    """Every site's solver observes ``steps`` batches; with the last one the site is solved and its data dropped.

    An interrupted stage starts again from its beginning.
    """

    def run(self, context: StageContext) -> StageOutcome:
        assert isinstance(context, EngineContext)
        planned = context.planned
        solvers = {site: context.solver(site) for site in planned.sites}
        walk = SiteWalk(context.student, {site: set(s.inputs) for site, s in solvers.items()}, {})
        per_site: dict[str, dict[str, float]] = {}
        total = planned.steps * len(solvers)
        done = 0
        stream = context.batches()
        context.student.module.eval()
        with torch.no_grad():
            for step in range(planned.steps):
                batch = next(stream)

                def on_site(
                    site: str, _student: dict[str, Any], given: dict[str, Any], batch: Any = batch, step: int = step
                ) -> None:
                    nonlocal done
                    solvers[site].observe(given, batch)
                    if step == planned.steps - 1:
                        figures = solvers.pop(site).solve()
                        for name, value in figures.items():
                            per_site.setdefault(name, {})[site] = value
                        context.metrics.row(
                            planned.folder, step + 1, {f"site.{site}.{k}": v for k, v in figures.items()}
                        )
                    done += 1
                    context.progress(done, total, site)

                walk.run(context.feed, batch, on_site, grad=False)
        means = {name: sum(values.values()) / len(values) for name, values in per_site.items() if values}
        return StageOutcome(metrics=means, per_site=per_site)
