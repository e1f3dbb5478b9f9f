"""Softmax attention as a mixer: the teacher's own, also for the layers a hybrid keeps.

Legend: B batch, L tokens, S tokens in the cache, D width, H heads, K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xarch import PlanError
from xarch.kernels import graph_form, grouped_query_attention
from xarch_decoder.factored import AttentionFactors
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.heads import MASKED, GroupedHeads
from xarch_decoder.model.mixer import ATTENTION, Mixer, SequenceInfo, StateSpec
from xarch_decoder.model.rotary import Rotation, rotation


class Attention(GroupedHeads, Mixer):
    """Grouped-query attention with rotary embedding, optional q/k norm, sliding window and soft-capped scores.

    A window of w lets a token see itself and the w - 1 tokens before it.

    Raises:
        PlanError: the head counts, or the rotary pairs and the head width, do not fit together.
    """

    kind = ATTENTION

    def __init__(self, facts: DecoderFacts, layer: int) -> None:
        if facts.heads % facts.kv_heads:
            raise PlanError(f"layer {layer}: {facts.heads} heads cannot share {facts.kv_heads} key/value heads")
        if 2 * len(facts.inverse_frequencies) > facts.head_dim:
            raise PlanError(
                f"layer {layer}: {len(facts.inverse_frequencies)} rotary pairs do not fit a head of {facts.head_dim}"
            )
        super().__init__(facts)
        self.window = facts.window(layer)
        self.frequencies, self.gain = facts.inverse_frequencies, facts.rotary_gain

    def forward(self, x_BLD: Tensor, sequence: SequenceInfo) -> Tensor:
        q_BLHE, k_BLKE = self._queries_keys(x_BLD, self._rotation(sequence))
        heads_BLHE = self._attend(q_BLHE, k_BLKE, self._values(x_BLD), self._mask(sequence))
        return self.o(heads_BLHE.flatten(2))

    def inner(self, x_BLD: Tensor, sequence: SequenceInfo, wanted: Collection[str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        mixes = "heads" in wanted or "mixer_out" in wanted
        if "matrix" in wanted or mixes:
            q_BLHE, k_BLKE = self._queries_keys(x_BLD, self._rotation(sequence))
            values["matrix"] = AttentionFactors(
                q_BLHE, k_BLKE, self.scale, self.window, self.softcap, sequence.segment_ids_BL
            )
        if "values" in wanted or mixes:
            values["values"] = self._values(x_BLD)
        if mixes:
            values["heads"] = self._attend(q_BLHE, k_BLKE, values["values"], self._mask(sequence))
        if "mixer_out" in wanted:
            values["mixer_out"] = self.o(values["heads"].flatten(2))
        return {name: value for name, value in values.items() if name in wanted}

    def inner_layouts(self) -> dict[str, str]:
        return {"matrix": "attention-factors", "values": "BLKE", "heads": "BLHE", "mixer_out": "BLD"}

    def inner_shapes(self) -> dict[str, dict[str, int]]:
        return {
            "matrix": {"H": self.heads},
            "values": {"K": self.kv_heads, "E": self.head_dim},
            "heads": {"H": self.heads, "E": self.head_dim},
        }

    def state_spec(self) -> tuple[StateSpec, ...]:
        shape, room = (self.kv_heads, -1, self.head_dim), self.window is None
        return StateSpec("key_cache", shape, room=room), StateSpec("value_cache", shape, room=room)

    def advance(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if graph_form("attention") == "runtime" and self.window is None and x_BLD.shape[0] == 1:
            return self._advance_in_runtime(x_BLD, positions_BL, state)
        q_BLHE, k_BKLE, v_BKLE = self._step(x_BLD, positions_BL)
        keys_BKSE = torch.cat([state[0], k_BKLE], 2)
        values_BKSE = torch.cat([state[1], v_BKLE], 2)
        allowed_BLS = None
        if x_BLD.shape[1] > 1 or self.window is not None:
            past_S = torch.arange(keys_BKSE.shape[2], device=x_BLD.device)
            allowed_BLS = self._visible(positions_BL[:, :, None], past_S)
        return self.o(self._read(q_BLHE, keys_BKSE, values_BKSE, allowed_BLS)), (keys_BKSE, values_BKSE)

    def _advance_in_runtime(
        self, x_1LD: Tensor, positions_1L: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As :meth:`advance`, by an operator of onnxruntime, which uses room behind the tokens in the cache."""
        by = rotation(positions_1L, self.frequencies, self.gain)
        q_1LHE, k_1LKE = self._queries_keys(x_1LD, by)
        last_1 = positions_1L[:, -1].to(torch.int32)
        out_1LX, keys_1KSE, values_1KSE = grouped_query_attention(
            q_1LHE.flatten(2),
            k_1LKE.flatten(2),
            self.v(x_1LD),
            state[0],
            state[1],
            last_1,
            last_1 + 1,
            scale=self.scale,
            softcap=self.softcap,
            grows=True,
        )
        return self.o(out_1LX), (keys_1KSE, values_1KSE)

    def advance_fixed(
        self, x_BLD: Tensor, positions_BL: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        q_BLHE, k_BKLE, v_BKLE = self._step(x_BLD, positions_BL)
        length = state[0].shape[2]
        # Use a constant rather than arange, and floats: accelerators rarely support Range or integer comparison.
        places_S = torch.tensor([float(s) for s in range(length)], device=x_BLD.device)
        at_BL1 = positions_BL.float()[:, :, None]
        keys_BKSE = _write(state[0], k_BKLE, places_S, at_BL1)
        values_BKSE = _write(state[1], v_BKLE, places_S, at_BL1)
        mixed_BLD = self._read(q_BLHE, keys_BKSE, values_BKSE, self._visible(at_BL1, places_S))
        return self.o(mixed_BLD), (keys_BKSE, values_BKSE)

    def _rotation(self, sequence: SequenceInfo) -> Rotation:
        key = ("rotation", self.frequencies, self.gain)
        return sequence.once(key, lambda: rotation(sequence.positions_BL, self.frequencies, self.gain))

    def _queries_keys(self, x_BLD: Tensor, by: Rotation) -> tuple[Tensor, Tensor]:
        return self._queries(x_BLD, by), self._keys(x_BLD, by)

    def _step(self, x_BLD: Tensor, positions_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BLHE, k_BLKE = self._queries_keys(x_BLD, rotation(positions_BL, self.frequencies, self.gain))
        return q_BLHE, k_BLKE.transpose(1, 2), self._values(x_BLD).transpose(1, 2)

    def _visible(self, query: Tensor, key: Tensor) -> Tensor:
        """Return which keys a query attends to, from their positions in the document."""
        seen = key <= query
        return seen if self.window is None else seen & (key > query - self.window)

    def _mask(self, sequence: SequenceInfo) -> Tensor | None:
        """Return a mask [B or 1, 1, L, L], True where attention is allowed; None for plain causal attention."""
        length = sequence.positions_BL.shape[1]
        window = self.window if self.window is not None and self.window < length else None
        segments_BL = sequence.segment_ids_BL
        if segments_BL is None and window is None:
            return None

        def build() -> Tensor:
            place_L = torch.arange(length, device=sequence.positions_BL.device)
            mask_1LL = self._visible(place_L[:, None], place_L)[None]
            if segments_BL is None:
                return mask_1LL[:, None]
            return (mask_1LL & (segments_BL[:, :, None] == segments_BL[:, None, :]))[:, None]

        return sequence.once(("attention mask", window), build)

    def _attend(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, mask_B1LL: Tensor | None) -> Tensor:
        """Attend over whole sequences; return [B, L, H, E]."""
        q_BHLE, k_BKLE, v_BKLE = (t.transpose(1, 2) for t in (q_BLHE, k_BLKE, v_BLKE))
        if self.softcap is None:
            heads_BHLE = F.scaled_dot_product_attention(
                q_BHLE,
                k_BKLE,
                v_BKLE,
                attn_mask=mask_B1LL,
                is_causal=mask_B1LL is None,
                scale=self.scale,
                enable_gqa=self.heads != self.kv_heads,
            )
            return heads_BHLE.transpose(1, 2)
        if mask_B1LL is None:
            length = q_BLHE.shape[1]
            mask_B1LL = torch.ones(1, 1, length, length, dtype=torch.bool, device=q_BLHE.device).tril()
        return self._explicit(q_BHLE, k_BKLE, v_BKLE, _allowing(mask_B1LL)).transpose(1, 2)

    def _read(self, q_BLHE: Tensor, keys_BKSE: Tensor, values_BKSE: Tensor, allowed_BLS: Tensor | None) -> Tensor:
        """Attend from new tokens to a cache; return [B, L, H * E]."""
        seen = None if allowed_BLS is None else _allowing(allowed_BLS[:, None])
        heads_BHLE = self._explicit(q_BLHE.transpose(1, 2), keys_BKSE, values_BKSE, seen)
        return heads_BHLE.transpose(1, 2).flatten(2)


def _allowing(mask_B1LS: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda scores_BHLS: torch.where(mask_B1LS, scores_BHLS, MASKED)


def _write(buffer_BKSE: Tensor, new_BKLE: Tensor, places_S: Tensor, at_BL1: Tensor) -> Tensor:
    """Return ``buffer`` with the new entries in place; uses an exact one-hot matrix product instead of scatter."""
    hit_BLS = at_BL1 == places_S
    if new_BKLE.shape[2] == 1:
        return torch.where(hit_BLS.transpose(1, 2)[:, None], new_BKLE, buffer_BKSE)
    one_hot_BLS = hit_BLS.to(new_BKLE.dtype)
    written_BKSE = one_hot_BLS.transpose(1, 2)[:, None] @ new_BKLE
    is_new_BS = (places_S >= at_BL1[:, 0]) & (places_S <= at_BL1[:, -1])
    return torch.where(is_new_BS[:, None, :, None], written_BKSE, buffer_BKSE)
