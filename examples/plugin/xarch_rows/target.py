"""The target: builds residual networks and exports them."""

from dataclasses import replace

import torch
from pydantic import Field

from xarch import ExportGraph, Options, TargetAdapter
from xarch_rows.family import RowFacts
from xarch_rows.models import RowStudent


class ResNetTarget(TargetAdapter):
    """Depth, columns and classes are the teacher's."""

    class Options(Options):
        """Options of the student."""

        width: int = Field(32, ge=1, description="of the blocks")

    def build(self, facts, options, decisions, *, device):
        with torch.device(device):
            return RowStudent(replace(facts, width=options.width))

    def facts_from_data(self, data, options):
        return RowFacts(data.facts["columns"], data.facts["classes"], options.width, 3)

    def recipe(self, facts, options):
        return "rows-kd"

    def export_graphs(self, student, profile, options):
        rows = torch.zeros(1 if profile.static else 2, student.facts.columns)
        dynamic = {} if profile.static else {"rows": {0: "batch"}}
        proof = {"reads": {"rows": "rows"}, "gives": {"logits": "logits"}, "top1": "logits"}
        return [ExportGraph("model", student.module.eval(), {"rows": rows}, ["logits"], dynamic, **proof)]
