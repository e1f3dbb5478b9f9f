"""The shared logits of HCD: what every term is, and the kit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from xarch import Batch, MatchContext, Tap
from xarch.registry.loader import get_registry
from xarch.testing import ObjectiveConformance

CLASSES = 5
OWN, OTHER = Tap("features.2", "feature", "BCHW", {"C": 3, "H": 2, "W": 2}), Tap("pooled", "feature", "BD", {"D": 4})


class TestHCD(ObjectiveConformance):
    objective = "hcd"
    options: ClassVar[Mapping[str, Any]] = {"parts": 3}
    student, teacher = OWN, OTHER
    data: ClassVar[Mapping[str, Any]] = {"classes": CLASSES}

    def aux(self, generator: torch.Generator) -> dict[str, Any]:
        logits = torch.randn(self.samples, CLASSES, generator=generator, dtype=torch.float64)
        return {"logits": logits, "labels": torch.randint(0, CLASSES, (self.samples,), generator=generator)}


def test_equal_parts_cost_one_and_orthogonal_ones_nothing() -> None:
    registry = get_registry()
    kind = registry.resolve(registry.get("objective", "hcd"))
    torch.manual_seed(0)
    found = kind(OWN, OTHER, kind.Options(parts=2), MatchContext("m", data={"classes": CLASSES}))
    own, other, logits, label = torch.randn(1, 3, 2, 2), torch.randn(1, 4), torch.randn(1, CLASSES), torch.tensor([2])
    parts = torch.tensor([[2.0, 0, 0, 0, 0], [0, 3.0, 0, 0, 0]])
    with torch.no_grad():
        found.share.weight.zero_()
        for given, apart in ((parts, 0.0), (parts[[0, 0]], 1.0)):
            found.share.bias.copy_(given.flatten())
            right = F.cross_entropy(given + logits, label.expand(2))
            like = F.kl_div(F.log_softmax(given, -1), logits.softmax(-1).expand(2, -1), reduction="batchmean")
            loss = found(own, other, Batch({"x": own}, 1), logits=logits, labels=label)
            torch.testing.assert_close(loss[0], right + like + apart)
