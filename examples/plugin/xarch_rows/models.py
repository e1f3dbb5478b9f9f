"""Two architectures with the same taps. Legend: B rows, C columns, D width, K classes."""

from itertools import pairwise

from torch import nn

from xarch import Student, TapModel, Teacher


class MLP(nn.Module):
    """``depth`` layers, then a head."""

    def __init__(self, facts):
        super().__init__()
        sizes = [facts.columns] + [facts.width] * facts.depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(facts.width, facts.classes)

    def hidden(self, x):
        for layer in self.layers:
            x = layer(x).relu()
            yield x


class ResNet(nn.Module):
    """A linear stem and ``depth`` blocks x + W2 gelu(W1 norm(x)), then a head."""

    def __init__(self, facts):
        super().__init__()
        self.stem = nn.Linear(facts.columns, facts.width)
        self.blocks = nn.ModuleList(self.block(facts.width) for _ in range(facts.depth))
        self.head = nn.Linear(facts.width, facts.classes)

    def block(self, width):
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def hidden(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
            yield x

    def forward(self, x):
        *_, last = self.hidden(x)
        return self.head(last)


class RowModel(TapModel):
    """What both sides share: a module with ``hidden`` and ``head``."""

    family = "rows"

    def taps(self):
        return self.facts.taps()

    def run(self, batch, wanted, sink):
        for i, value in enumerate(self.module.hidden(batch["rows"])):
            if f"features.{i}" in wanted:
                sink(f"features.{i}", value)
        if "logits" in wanted:
            sink("logits", self.module.head(value))


class RowTeacher(RowModel, Teacher):
    """The MLP of a file."""

    def __init__(self, facts, ref, fingerprint):
        self.facts, self.ref, self.fingerprint = facts, ref, fingerprint
        self.module = MLP(facts).eval().requires_grad_(False)

    def weights(self):
        return self.module.state_dict()


class RowStudent(RowModel, Student):
    """The residual network."""

    def __init__(self, facts):
        self.facts, self.module = facts, ResNet(facts)

    def param_groups(self):
        names = [name for name, _ in self.module.named_parameters()]
        return {"all": names, "head": [name for name in names if name.startswith("head.")]}
