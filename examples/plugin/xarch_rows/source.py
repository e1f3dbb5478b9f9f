"""``rows:FILE``: an MLP in a safetensors file. ``python -m xarch_rows.source TABLE FILE`` trains one."""

import json
import sys
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F

from xarch import DataRequest, SourceAdapter, SourceInfo, file_digest, load_weights, save_weights, weights_header
from xarch_rows.data import TableData
from xarch_rows.family import RowFacts
from xarch_rows.models import MLP, RowTeacher


class RowSource(SourceAdapter):
    """The file's metadata hold the facts, so that a plan reads its header only."""

    def tiny(self, options):
        return options  # they are small anyway

    def describe(self, ref, options):
        header = weights_header(ref)
        facts = RowFacts.from_json(json.loads(header.metadata["facts"]))
        count = sum(p.numel() for p in MLP(facts).parameters())
        return SourceInfo("rows", facts, count, Path(ref).stat().st_size, f"MLP, {facts.depth} layers")

    def load(self, ref, options, *, device, dtype):
        teacher = RowTeacher(self.describe(ref, options).facts, f"rows:{ref}", file_digest(Path(ref)))
        teacher.module.load_state_dict(load_weights(ref))
        teacher.module.to(device, dtype)
        return teacher

    def random(self, ref, options, *, device, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return RowTeacher(self.describe(ref, options).facts, f"rows:{ref}", f"random-{seed}")


def train_teacher(table, file, steps=600, width=64, depth=3):
    """Train an MLP on a table's training rows and save it; returns the file."""
    data, request = TableData(), DataRequest(table, TableData.Options(), samples=64)
    known = data.describe(request).facts
    facts = RowFacts(known["columns"], known["classes"], width, depth)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = MLP(facts)
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.01)
    for batch in islice(data.open(request), steps):
        *_, last = module.hidden(batch["rows"])
        optimiser.zero_grad()
        F.cross_entropy(module.head(last), batch["labels"]).backward()
        optimiser.step()
    save_weights(module.state_dict(), file, {"facts": json.dumps(facts.to_json())})
    return file


if __name__ == "__main__":
    print(f"rows:{train_teacher(*sys.argv[1:])}")
