"""Small decoders, a third-party mixer and hand-written Hugging Face weight maps for the tests of the decoder family."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xarch.contracts.batch import Batch
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.mixer import Mixer, SequenceInfo, StateSpec
from xarch_decoder.student import DecoderStudent


def inverse_frequencies(pairs: int, base: float = 10000.0) -> tuple[float, ...]:
    return tuple(base ** (-i / pairs) for i in range(pairs))


def tiny_facts(**changes: Any) -> DecoderFacts:
    """Two layers, width 32, 4 heads on 2 key heads."""
    facts = DecoderFacts(
        layers=2,
        width=32,
        vocab=61,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=48,
        scale=8**-0.5,
        inverse_frequencies=inverse_frequencies(4),
        max_positions=256,
        bos=1,
        eos=(2,),
    )
    return replace(facts, **changes)


class EMA(Mixer):
    """A mixer as a third party would write it: h_t = a h_{t-1} + (1 - a) W x_t per channel, with a learned a."""

    kind = "ema"

    def __init__(self, facts: DecoderFacts, layer: int) -> None:
        super().__init__()
        self.width = facts.width
        self.value = nn.Linear(facts.width, facts.width, bias=False)
        self.logit = nn.Parameter(torch.linspace(-1, 3, facts.width))

    def forward(self, x_BLD: Tensor, sequence: SequenceInfo) -> Tensor:
        v_BLD, a_D = self.value(x_BLD), torch.sigmoid(self.logit)
        state_BD, out = torch.zeros_like(v_BLD[:, 0]), []
        for t in range(x_BLD.shape[1]):
            fresh_B1 = (sequence.positions_BL[:, t, None] > 0).to(state_BD.dtype)
            state_BD = a_D * state_BD * fresh_B1 + (1 - a_D) * v_BLD[:, t]
            out.append(state_BD)
        return torch.stack(out, 1)

    def advance(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        length, a_D = x_BLD.shape[1], torch.sigmoid(self.logit)
        age_L = torch.tensor([float(t) for t in range(length)], device=x_BLD.device)
        lag_LL = (age_L[:, None] - age_L)[..., None]
        weight_LLD = torch.where(lag_LL >= 0, a_D ** lag_LL.clamp_min(0), 0.0) * (1 - a_D)
        out_BLD = (weight_LLD * self.value(x_BLD)[:, None]).sum(2) + a_D ** (age_L[:, None] + 1) * state[0][:, None]
        return out_BLD, (out_BLD[:, -1],)

    def state_spec(self) -> tuple[StateSpec, ...]:
        return (StateSpec("average", (self.width,)),)

    def inner(self, x_BLD: Tensor, sequence: SequenceInfo, wanted: Collection[str]) -> dict[str, Any]:
        return {"heads": self.value(x_BLD).unflatten(-1, (4, -1))} if "heads" in wanted else {}

    def inner_layouts(self) -> dict[str, str]:
        return {"heads": "BLHE"}

    def inner_shapes(self) -> dict[str, dict[str, int]]:
        return {"heads": {"H": 4, "E": self.width // 4}}


def make_student(
    facts: DecoderFacts, *kinds: tuple[Any, ...] | Any, seed: int = 0, device: str = "cpu"
) -> DecoderStudent:
    """A student whose layer i has the mixers ``kinds[i]`` (attention everywhere by default)."""
    torch.manual_seed(seed)
    layers = [k if isinstance(k, tuple) else (k,) for k in kinds] or [(Attention,)] * facts.layers
    student = DecoderStudent(facts, layers, device=device)
    with torch.no_grad():
        for name, p in student.module.named_parameters():
            if p.ndim == 1 and "norm" in name:
                p.add_(0.2 * torch.randn_like(p))
    return student


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest deviation, as a fraction of the largest expected value."""
    return float((got - expected).abs().max() / expected.abs().max())


def tokens(facts: DecoderFacts, rows: int, length: int, *, seed: int = 1, documents: bool = False) -> Batch:
    """Random tokens; with ``documents`` every row holds three documents of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {"input_ids": torch.randint(facts.vocab, (rows, length), generator=generator)}
    if documents:
        cuts = torch.stack([torch.randperm(length - 1, generator=generator)[:2] + 1 for _ in range(rows)])
        place = torch.arange(length)
        tensors["segment_ids"] = (place[None, None] >= cuts[:, :, None]).sum(1)
    return Batch(tensors, rows * length)
