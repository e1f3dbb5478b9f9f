"""The student of every target of this family: a decoder with some of its sequence mixers replaced.

Legend: B batch, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xarch import Batch, LocalStudent, PlanError, Replaceable, Sink, Site, Tap, Teacher
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.block import MixerFactory
from xarch_decoder.model.decoder import MixerDecoder, Probe, make_sequence
from xarch_decoder.model.mixer import ATTENTION, Mixer
from xarch_decoder.taps import block_tap, tail_taps
from xarch_decoder.teacher import StudentTeacher


class DecoderStudent(LocalStudent):
    """A :class:`MixerDecoder` as a student.

    A layer holds one mixer, or a replacement together with the teacher's attention until :meth:`decide` drops one of
    them. The first mixer of a layer is active.

    Args:
        facts: the teacher's architecture.
        mixers: mixer factories of each layer, e.g. ``[DM2, Attention]``.
        count: number of layers for a stage ``kl_probe`` to choose, None if the layers are given.
        device: device of the parameters; "meta" allocates nothing.

    Raises:
        ValueError: a layer has no mixer, two of the same kind, or two replacements.
    """

    family = "decoder"

    def __init__(
        self,
        facts: DecoderFacts,
        mixers: Sequence[Sequence[MixerFactory]],
        *,
        count: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.facts, self.count = facts, count
        with torch.device(device):
            self.decoder = MixerDecoder(facts, mixers)
        self.module = self.decoder
        for layer in range(facts.layers):
            if len(self._replacements(layer)) > 1:
                raise ValueError(f"layer {layer} has two replacement mixers: {self._replacements(layer)}")

    def replacement(self, layer: int) -> str | None:
        """Return the kind of the layer's replacement mixer, or None where attention is kept."""
        return next(iter(self._replacements(layer)), None)

    def _replacements(self, layer: int) -> list[str]:
        return [kind for kind in self.decoder.block(layer).kinds if kind != ATTENTION]

    @property
    def replaced(self) -> tuple[int, ...]:
        """Return the layers that have a replacement mixer."""
        return tuple(i for i in range(self.facts.layers) if self._replacements(i))

    @property
    def open_layers(self) -> tuple[int, ...]:
        """Return the layers that hold both a replacement and the teacher's attention."""
        return tuple(i for i in self.replaced if ATTENTION in self.decoder.block(i).kinds)

    def state_bytes(self) -> dict[int, int]:
        """Return the bytes of the constant state of every replaced layer whose replacement has no growing state."""
        found: dict[int, int] = {}
        for layer in self.replaced:
            specs = self.decoder.block(layer).mixer(self.replacement(layer)).state_spec()
            if all(spec.axis is None for spec in specs):
                found[layer] = sum(spec.bytes for spec in specs)
        return found

    def traits(self) -> Mapping[str, str]:
        """Return the constant state of a layer, and the context from which it is smaller than a cache."""
        found = self.state_bytes()
        if not found:
            return {}
        mean = sum(found.values()) / len(found)
        token = 2 * self.facts.kv_heads * self.facts.head_dim * 2
        return {
            "state": f"{mean / 1000:.1f} kB a layer in {len(found)} of {self.facts.layers} layers, at any context",
            "break-even": f"{mean / token:.0f} tokens: beyond them a float16 cache of such a layer is larger",
        }

    def taps(self) -> Mapping[str, Tap]:
        taps: dict[str, Tap] = {}
        for layer in range(self.facts.layers):
            taps |= {t.name: t for t in self._block_taps(layer, self.decoder.block(layer).mixer())}
        return taps | tail_taps(self.facts)

    def _block_taps(self, layer: int, mixer: Mixer) -> Iterable[Tap]:
        yield block_tap(self.facts, layer, "input")
        yield block_tap(self.facts, layer, "mixer_in")
        shapes = mixer.inner_shapes()
        for leaf, layout in mixer.inner_layouts().items():
            if leaf != "mixer_out":
                kind = "matrix" if leaf == "matrix" else "hidden"
                yield Tap(f"blocks.{layer}.{leaf}", kind, layout, dict(shapes.get(leaf, {})))
        yield block_tap(self.facts, layer, "mixer_out")
        yield block_tap(self.facts, layer, "output")

    def run(
        self,
        batch: Batch,
        wanted: Collection[str],
        sink: Sink,
        *,
        start: tuple[int, Tensor] | None = None,
        active: Mapping[int, str] | None = None,
    ) -> None:
        """Push the wanted taps; stop after the last one.

        Args:
            start: (layer, residual stream [B, L, D] entering it): layers before it are not run.
            active: layer -> kind of mixer to run instead of the active one, for probes of single layers.

        Raises:
            ValueError: a wanted tap does not exist, or lies before ``start``.
        """
        active = dict(active or {})
        self._check(wanted, 0 if start is None else start[0], active)
        probe = Probe(frozenset(wanted), sink, active, start)
        self.decoder.read(batch["input_ids"], batch.get("segment_ids"), probe)

    def _check(self, wanted: Collection[str], first: int, active: Mapping[int, str]) -> None:
        known = set(tail_taps(self.facts))
        for layer in range(first, self.facts.layers):
            mixer = self.decoder.block(layer).mixer(active.get(layer))
            known |= {tap.name for tap in self._block_taps(layer, mixer)}
        unknown = sorted(set(wanted) - known)
        if unknown:
            raise ValueError(f"the student has no taps {unknown} from layer {first} on")

    def sites(self) -> Mapping[str, Site]:
        sites: dict[str, Site] = {}
        for layer in self.replaced:
            name = f"blocks.{layer}"
            mixer = self.decoder.block(layer).mixer(self.replacement(layer))
            taps = {tap.leaf: tap for tap in self._block_taps(layer, mixer) if tap.leaf != "input"}
            sites[name] = Site(name, {"input": f"{name}.input"}, taps)
        return sites

    def run_site(self, site: str, inputs: Mapping[str, Any], wanted: Collection[str], batch: Batch) -> dict[str, Any]:
        layer = int(site.rsplit(".", 1)[-1])
        x_BLD: Tensor = inputs["input"]
        values: dict[str, Any] = {}
        sequence = make_sequence(batch["input_ids"], batch.get("segment_ids"))
        x_BLD = x_BLD.to(self.decoder.embed.weight.dtype)
        # Call the module, not its methods: sharding gathers a block's weights in the call.
        self.decoder.blocks[layer](x_BLD, sequence, self.replacement(layer), wanted, values.__setitem__, False)
        return values

    def param_groups(self) -> Mapping[str, list[str]]:
        """Return parameter names by group.

        Groups: ``mixers`` (replacements only), ``attention``, ``mlps``, ``norms`` (of the trunk), ``embedding``,
        ``head`` (the embedding if tied) and ``all``.
        """
        groups: dict[str, list[str]] = {
            key: [] for key in ("mixers", ATTENTION, "mlps", "norms", "embedding", "head", "all")
        }
        for name, _ in self.module.named_parameters():
            groups["all"].append(name)
            groups[_group_of(name)].append(name)
        if self.facts.tied:
            groups["head"] += groups["embedding"]
        return groups

    def no_decay(self) -> Collection[str]:
        names = {name for name, p in self.module.named_parameters() if ".mixers." not in name and p.ndim < 2}
        for layer in range(self.facts.layers):
            for kind, mixer in self.decoder.block(layer).mixers.items():
                assert isinstance(mixer, Mixer)
                names |= {f"blocks.{layer}.mixers.{kind}.{name}" for name in mixer.no_decay()}
        return names

    def decide(self, decisions: Mapping[str, Any]) -> None:
        """Apply ``{"layers": [...]}``: those layers use their replacement mixer, all others attention.

        Unused mixers are dropped.

        Raises:
            PlanError: a layer lacks the mixer that the decision assigns to it.
            ValueError: the decision is unknown.
        """
        unknown = sorted(set(decisions) - {"layers"})
        if unknown:
            raise ValueError(f"a decoder student accepts decisions about layers only, got {unknown}")
        if "layers" not in decisions:
            return
        chosen = {int(i) for i in decisions["layers"]}
        outside = sorted(chosen - set(range(self.facts.layers)))
        if outside:
            raise PlanError(f"decision `layers`: {outside} are not layers of a decoder with {self.facts.layers}")
        kinds = {i: (self.replacement(i) if i in chosen else ATTENTION) for i in range(self.facts.layers)}
        for layer, kind in kinds.items():
            if kind not in self.decoder.block(layer).kinds:
                held, want = ", ".join(self.decoder.block(layer).kinds), kind or "a replacement"
                raise PlanError(
                    f"decision `layers` {sorted(chosen)}: layer {layer} should run {want}, but has {held}",
                    "build the student with both mixers in every undecided layer",
                )
        for layer, kind in kinds.items():
            assert kind is not None
            self.decoder.keep(layer, kind)

    def finish(self) -> None:
        """Check that every layer has one mixer.

        Raises:
            PlanError: no stage chose the layers.
        """
        if self.open_layers:
            raise PlanError(
                f"student.options.layers: no stage chose among the {len(self.open_layers)} layers with two mixers",
                "add a stage `choose: {kind: kl_probe}` (or set `stages.choose.skip=no`), or name the layers with "
                "`replace`, `keep` or `every`",
            )

    def constants(self) -> Mapping[str, Tensor]:
        """Return ``head.weight`` [V, D], the output projection."""
        return {"head.weight": self.decoder.head_weight}

    def as_teacher(self, ref: str, fingerprint: str, processor: Any = None) -> Teacher:
        """Return this student, frozen and in eval mode, as the teacher of another conversion."""
        return StudentTeacher(self, ref=ref, fingerprint=fingerprint, processor=processor)

    def replaceable(self) -> Sequence[Replaceable]:
        """Return the MLP of every block, and the projections of every attention that is the teacher's."""
        found: list[Replaceable] = []
        for layer in range(self.facts.layers):
            block = self.decoder.block(layer)
            if block.kinds == (ATTENTION,):
                stem = f"blocks.{layer}.mixers.{ATTENTION}"
                found += [Replaceable(f"{stem}.{name}", name) for name in ("q", "k", "v", "o")]
            act = block.mlp.hidden.activation
            into = ("up",) if block.mlp.gate is None else ("gate", "up")
            found.append(Replaceable(f"blocks.{layer}.mlp", "mlp", True, into, block.mlp.hidden, "down", act))
        return found

    def shard_units(self) -> Iterable[nn.Module]:
        return self.decoder.blocks


def _group_of(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blocks":
        if parts[2] == "mixers":
            return ATTENTION if parts[3] == ATTENTION else "mixers"
        return "mlps" if parts[2] == "mlp" else "norms"
    return {"embed": "embedding", "head": "head", "norm": "norms"}[parts[0]]
