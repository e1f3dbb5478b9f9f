"""Documents, recurrent stepping and parameter names of the canonical decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.plugins.decoder.decoder_models import EMA, difference, make_student, tiny_facts, tokens
from xarch.errors import PlanError
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.decoder import MixerDecoder, make_sequence
from xarch_decoder.weights import attention_shapes, trunk_shapes

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"windows": (5, None)},
    "softcap": {"softcap": 2.0, "final_softcap": 3.0, "embed_gain": 5.0},
    "softcap-window": {"softcap": 2.0, "windows": (None, 4)},
    "parallel": {"block": "parallel", "shared_norm": True, "norm": "layer", "mlp": "plain", "activation": "relu"},
    "qk-norm-partial": {"qk_norm": True, "inverse_frequencies": (1.0, 0.1), "rotary_gain": 1.2, "tied": False},
    "no-rotary": {"inverse_frequencies": (), "head_bias": True, "activation": "gelu_tanh", "kv_heads": 4},
}


@pytest.fixture(params=VARIANTS)
def facts(request: pytest.FixtureRequest) -> DecoderFacts:
    return tiny_facts(**VARIANTS[request.param])


@torch.no_grad()
def test_documents_are_independent(facts: DecoderFacts) -> None:
    decoder = make_student(facts, Attention, EMA).decoder
    batch = tokens(facts, 3, 41, documents=True)
    together = decoder(batch["input_ids"], batch["segment_ids"])
    for row in range(3):
        for segment in range(3):
            where = batch["segment_ids"][row] == segment
            alone = decoder(batch["input_ids"][row, where][None])[0]
            assert difference(together[row, where], alone) <= 2e-6
    assert (decoder(batch["input_ids"]) - together).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(17,), (1,) * 17, (5, 1, 8, 3), (16, 1), (2, 15)])
@pytest.mark.parametrize("fixed", [False, True])
def test_pieces_equal_the_whole(facts: DecoderFacts, cuts: tuple[int, ...], fixed: bool) -> None:
    decoder = make_student(facts, Attention, (EMA if facts.softcap is None else Attention)).decoder
    ids = tokens(facts, 2, sum(cuts))["input_ids"]
    whole = decoder(ids)
    states, pieces, done = decoder.initial_states(2, length=24 if fixed else 0), [], 0
    for length in cuts:
        position = torch.tensor([done])
        logits, states = decoder.advance(ids[:, done : done + length], position, states, fixed=fixed)
        pieces.append(logits)
        done += length
    assert difference(torch.cat(pieces, 1), whole) <= 2e-6
    assert states[0][0].shape == (2, facts.kv_heads, 24 if fixed else done, facts.head_dim)


@torch.no_grad()
def test_fixed_buffers_ignore_what_lies_behind_the_position() -> None:
    facts = tiny_facts()
    decoder = make_student(facts).decoder
    ids = tokens(facts, 1, 9)["input_ids"]
    clean = decoder.initial_states(length=16)
    dirty = tuple(tuple(t + 1e3 for t in layer) for layer in clean)
    a, _ = decoder.advance(ids, 0, clean, fixed=True)
    b, _ = decoder.advance(ids, 0, dirty, fixed=True)
    assert torch.equal(a, b)


def test_window_of_one_sees_itself_only() -> None:
    facts = tiny_facts(windows=(1, 1))
    decoder = make_student(facts).decoder
    ids = tokens(facts, 1, 6)["input_ids"]
    changed = ids.clone()
    changed[0, 2] = (changed[0, 2] + 1) % facts.vocab
    moved = (decoder(ids) - decoder(changed)).abs().amax(-1)[0]
    assert moved[2] > 0
    assert torch.equal(moved[[0, 1, 3, 4, 5]], torch.zeros(5))


def test_positions_restart_with_each_document() -> None:
    segments = torch.tensor([[0, 0, 0, 1, 2, 2], [4, 5, 5, 5, 5, 5]])
    sequence = make_sequence(torch.zeros(2, 6, dtype=torch.int64), segments)
    assert sequence.positions_BL.tolist() == [[0, 1, 2, 0, 0, 1], [0, 0, 1, 2, 3, 4]]


def test_parameter_names_and_shapes_are_canonical(facts: DecoderFacts) -> None:
    decoder = make_student(facts, device="meta").decoder
    shapes = {name: tuple(p.shape) for name, p in decoder.state_dict().items()}
    wanted = dict(trunk_shapes(facts))
    for layer in range(facts.layers):
        wanted |= {n.replace(".attention.", ".mixers.attention."): s for n, s in attention_shapes(facts, layer).items()}
    assert shapes == wanted
    assert not list(decoder.buffers())


def test_meta_build_gets_values_from_the_state_dict_alone(facts: DecoderFacts) -> None:
    real = make_student(facts)
    empty = make_student(facts, device="meta")
    empty.module.to_empty(device="cpu")
    empty.module.load_state_dict(real.module.state_dict())
    ids = tokens(facts, 1, 12)["input_ids"]
    assert torch.equal(real.decoder(ids), empty.decoder(ids))


def test_keep_drops_the_other_mixers() -> None:
    facts = tiny_facts()
    decoder = make_student(facts, (EMA, Attention), (EMA, Attention)).decoder
    assert decoder.block(0).active == "ema"
    decoder.keep(0, "attention")
    assert decoder.block(0).kinds == ("attention",)
    assert not any(name.startswith("blocks.0.mixers.ema") for name in decoder.state_dict())
    with pytest.raises(ValueError, match="no mixer 'ema'"):
        decoder.keep(0, "ema")


def test_impossible_architectures_are_refused() -> None:
    with pytest.raises(PlanError, match="4 heads cannot share 3"):
        Attention(tiny_facts(kv_heads=3), 0)
    with pytest.raises(PlanError, match="rotary pairs"):
        Attention(tiny_facts(inverse_frequencies=(1.0,) * 5), 0)
    with pytest.raises(ValueError, match="1 lists of mixers for 2 layers"):
        MixerDecoder(tiny_facts(), [[Attention]])
    with pytest.raises(ValueError, match="distinct kinds"):
        MixerDecoder(tiny_facts(), [[Attention, Attention], [Attention]])


def test_growing_state_without_fixed_form_is_refused() -> None:
    class Grower(EMA):
        def state_spec(self) -> Any:
            return Attention(tiny_facts(), 0).state_spec()

    with pytest.raises(PlanError, match="no fixed-length form"):
        Grower(tiny_facts(), 0).advance_fixed(torch.zeros(1, 1, 32), torch.zeros(1, 1), ())


@torch.no_grad()
def test_half_precision_states() -> None:
    facts = tiny_facts()
    decoder = make_student(facts, Attention, EMA).decoder.to(torch.bfloat16)
    states = decoder.initial_states(3, length=4)
    assert [t.dtype for layer in states for t in layer] == [torch.bfloat16, torch.bfloat16, torch.float32]
    ids = tokens(facts, 2, 33)["input_ids"]
    full = make_student(facts, Attention, EMA).decoder(ids)
    assert (decoder(ids).float() - full).norm() / full.norm() < 0.05


def test_gradients_flow_under_autocast() -> None:
    facts = tiny_facts(qk_norm=True)
    decoder = make_student(facts, Attention, EMA).decoder
    batch = tokens(facts, 2, 15, documents=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = decoder(batch["input_ids"], batch["segment_ids"]).float().square().mean()
    loss.backward()
    for name, p in decoder.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("window", [5, 6, 7])
def test_the_first_token_out_of_the_window_is_not_seen(window: int) -> None:
    facts = tiny_facts(layers=1, windows=(window,))
    decoder = make_student(facts).decoder
    ids = tokens(facts, 1, 7)["input_ids"]
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % facts.vocab
    moved = (decoder(ids) - decoder(changed)).abs().amax(-1)[0]
    assert (moved > 0).tolist() == [place < window for place in range(7)]


@torch.no_grad()
def test_factors_do_what_they_say() -> None:
    ids = tokens(tiny_facts(), 2, 9)["input_ids"]

    def logits(**changes: Any) -> torch.Tensor:
        return make_student(tiny_facts(tied=False, **changes)).decoder(ids)

    plain = logits()
    assert difference(logits(final_softcap=2.0), 2 * torch.tanh(plain / 2)) <= 1e-6
    assert difference(logits(rotary_gain=1.5), logits(scale=2.25 * 8**-0.5)) <= 1e-6
    louder = make_student(tiny_facts(tied=False)).decoder
    louder.embed.weight.mul_(3)
    assert difference(logits(embed_gain=3.0), louder(ids)) <= 1e-6
    assert difference(logits(softcap=1e4), plain) <= 1e-5
    assert difference(logits(softcap=0.1), plain) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("block", ["sequential", "parallel"])
def test_a_shared_norm_is_the_first_one_used_twice(block: str) -> None:
    shared = make_student(tiny_facts(block=block, shared_norm=True)).decoder
    apart = make_student(tiny_facts(block=block)).decoder
    apart.load_state_dict(
        shared.state_dict() | {f"blocks.{i}.norm2.weight": shared.block(i).norm1.weight for i in range(2)}
    )
    ids = tokens(shared.facts, 2, 9)["input_ids"]
    assert torch.equal(shared(ids), apart(ids))
