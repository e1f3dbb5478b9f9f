"""The family: what a classifier of rows is."""

from dataclasses import asdict, dataclass, replace

import torch

from xarch import Batch, Family, Tap


@dataclass(frozen=True)
class RowFacts:
    """Size of a classifier: columns in, classes out, ``depth`` hidden layers of ``width``."""

    columns: int
    classes: int
    width: int
    depth: int

    def to_json(self):
        return asdict(self)

    @classmethod
    def from_json(cls, data):
        return cls(**data)

    def taps(self):
        hidden = [Tap(f"features.{i}", "feature", "BD", {"D": self.width}) for i in range(self.depth)]
        return {tap.name: tap for tap in [*hidden, Tap("logits", "logits", "BK", {"K": self.classes})]}

    def tiny(self):
        return replace(self, depth=min(self.depth, 2))

    def work(self, sample):
        return float(self.width * (self.columns + self.classes + self.width * (self.depth - 1)))


class Rows(Family):
    """Rows in, one class each."""

    Facts = RowFacts
    unit = "row"
    tensors = {"rows": "BC"}
    metric = "row-accuracy"
    places = {"logits": "logits", "hidden": "features.{}", "labels": "batch:labels"}

    def accepts(self, facts, data):
        for name, own in (("classes", facts.classes), ("columns", facts.columns)):
            if data.facts.get(name, own) != own:
                return f"{data.facts[name]} {name}, the model has {own}"
        return None

    def example_batch(self, facts, samples=2, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return Batch({"rows": torch.randn(samples, facts.columns, generator=generator)}, samples)

    def tiny_teacher(self, folder):
        from xarch_rows.source import train_teacher

        return f"rows:{train_teacher('wine', folder / 'teacher.safetensors', steps=60)}"

    def tiny_run(self, folder):
        return {"data.ref": "rows:wine"}
