"""A timm model with taps, as a teacher and as a student.

Legend: B images, C channels, H and W the grid, P prefix tokens, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from xarch import Replaceable, Sink, Student, TapModel, Teacher
from xarch_image import HeadModel, ImageFacts, ImageModel
from xarch_timm.anatomy import Net, classifiers, heads, intermediates
from xarch_timm.build import anatomy, classifier
from xarch_timm.parts import replaceable_parts

FUSION = "fusion"
"""Decision of a stage that weighs two classifiers."""


class TimmModel(ImageModel):
    """A network of timm; ``module`` is exactly timm's, so its weights have timm's names."""

    module: Net

    def __init__(self, net: Net, facts: ImageFacts) -> None:
        super().__init__(facts)
        self.module = net
        self._places = anatomy(facts).places

    def read(self, x_BCHW: Tensor, wanted: Collection[str], sink: Sink) -> None:
        own = heads(self.module)
        made = {f"logits.{name}": head for name, head in own.items() if f"logits.{name}" in wanted}
        given = {f"pooled.{name}": head for name, head in own.items() if f"pooled.{name}" in wanted}
        handles = [
            *(head.register_forward_hook(lambda m, x, y, name=name: sink(name, y)) for name, head in made.items()),
            *(head.register_forward_pre_hook(lambda m, x, name=name: sink(name, x[0])) for name, head in given.items()),
        ]
        try:
            asked = {"logits" if name in made or name in given else name for name in wanted}
            self._read(x_BCHW, asked, lambda name, value: sink(name, value) if name in wanted else None)
        finally:
            for handle in handles:
                handle.remove()

    def _read(self, x_BCHW: Tensor, wanted: Collection[str], sink: Sink) -> None:
        stages = sorted({int(w.rpartition(".")[2]) for w in wanted if "." in w})
        head = not {"pooled", "logits"}.isdisjoint(wanted)
        if not stages and "pooled" not in wanted:
            if head:
                sink("logits", self.module(x_BCHW))
            return
        places = [self._places[number - 1] for number in stages]
        final, maps, prefixes = intermediates(self.module, x_BCHW, places or [self._places[-1]], only=not head)
        for number, map_BCHW, prefix_BPD in zip(stages, maps, prefixes, strict=bool(stages)):
            if f"features.{number}" in wanted:
                sink(f"features.{number}", map_BCHW)
            if f"stages.{number}" in wanted:
                sink(f"stages.{number}", self._own_form(map_BCHW, prefix_BPD))
        if head:
            self._head(final, wanted, sink)

    def _own_form(self, map_BCHW: Tensor, prefix_BPD: Tensor | None) -> Tensor:
        if self.facts.kind == "conv":
            return map_BCHW
        grid_BLD = rearrange(map_BCHW, "b c h w -> b (h w) c")
        return grid_BLD if prefix_BPD is None else torch.cat([prefix_BPD, grid_BLD], 1)

    def _head(self, final: Any, wanted: Collection[str], sink: Sink) -> None:
        last = classifier(self.module)
        if "pooled" not in wanted or last is None:
            if "pooled" in wanted:
                sink("pooled", self.module.forward_head(final, pre_logits=True))
            if "logits" in wanted:
                sink("logits", self.module.forward_head(final))
            return
        # One pass gives both, so that dropout and batch statistics of the head run once.
        seen: list[Tensor] = []
        handle = last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            logits_BK = self.module.forward_head(final)
        finally:
            handle.remove()
        sink("pooled", seen[0])
        if "logits" in wanted:
            sink("logits", logits_BK)

    def classifiers(self) -> Mapping[str, nn.Module]:
        return heads(self.module)

    def constants(self) -> Mapping[str, Tensor]:
        """Return ``classifier.weight`` [K, D], if the classifier is one linear layer over ``pooled``."""
        last = classifier(self.module)
        return {} if last is None or last.in_features != self.facts.pooled else {"classifier.weight": last.weight}


class TimmTeacher(TimmModel, Teacher):
    """A trained, frozen model."""

    def __init__(self, net: Net, facts: ImageFacts, *, ref: str, fingerprint: str) -> None:
        super().__init__(net.eval().requires_grad_(False), facts)
        self.ref, self.fingerprint = ref, fingerprint

    def weights(self) -> Mapping[str, Tensor]:
        return self.module.state_dict()


class TimmStudent(TimmModel, Student):
    """A model in training; all of its stages are global.

    Attributes:
        fusion: share of the first of two classifiers in the answer, where a stage chose it; None: ½.
    """

    fusion: float | None = None

    def param_groups(self) -> Mapping[str, list[str]]:
        """Return ``all``, ``head`` (the classifier) and ``body``."""
        names = [name for name, _ in self.module.named_parameters()]
        own = {id(p) for part in classifiers(self.module) for p in part.parameters()}
        last = [name for name, p in self.module.named_parameters() if id(p) in own]
        return {"all": names, "head": last, "body": [name for name in names if name not in set(last)]}

    def variants(self) -> Mapping[str, TapModel]:
        """Return the student judged by each of its classifiers alone, if it has several, and by their plain mean where
        a stage chose another one."""
        names = self.facts.heads
        if self.fusion is None:
            return {name: HeadModel(self, {name: 1.0}) for name in names}
        shares = dict(zip(names, (self.fusion, 1 - self.fusion), strict=True))
        alone = {name: 1 / (2 * share) for name, share in shares.items()}
        found = {name: HeadModel(self, {name: weight}) for name, weight in alone.items()}
        return {**found, "mean": HeadModel(self, {name: weight / 2 for name, weight in alone.items()})}

    def decide(self, decisions: Mapping[str, Any]) -> None:
        """Apply ``fusion``, the share of the first of two classifiers, which their weights contain already."""
        super().decide({key: value for key, value in decisions.items() if key != FUSION})
        self.fusion = decisions.get(FUSION, self.fusion)

    def no_decay(self) -> Collection[str]:
        """Return biases, norms, and what timm exempts (position embeddings, class tokens)."""
        exempt = getattr(self.module, "no_weight_decay", None)
        return {*super().no_decay(), *(exempt() if callable(exempt) else ())} & set(self.param_groups()["all"])

    def replaceable(self) -> Sequence[Replaceable]:
        return replaceable_parts(self.facts)

    def as_teacher(self, ref: str, fingerprint: str, processor: Any) -> TimmTeacher:
        """Return the finished student as the teacher of another conversion."""
        return TimmTeacher(self.module, self.facts, ref=ref, fingerprint=fingerprint)
