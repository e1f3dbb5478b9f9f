"""Perplexity, KL, agreement and continuations against plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from xarch import Batch, EvaluationRequest, Tap, TapModel, UsageError
from xarch_decoder import scores
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.generation import continue_greedily
from xarch_decoder.model.attention import Attention
from xarch_decoder.scores import NotFiniteError, targets
from xarch_decoder.student import DecoderStudent
from xarch_text.effort import EFFORT
from xarch_text.metric import Perplexity
from xarch_text.report import sections

FACTS = DecoderFacts(
    layers=2,
    width=24,
    vocab=300,
    heads=3,
    kv_heads=1,
    head_dim=8,
    mlp_width=32,
    scale=8**-0.5,
    inverse_frequencies=(1.0, 0.1, 0.01, 0.001),
)


def decoder(seed: int) -> DecoderStudent:
    torch.manual_seed(seed)
    made = DecoderStudent(FACTS, [[Attention]] * FACTS.layers)
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    made.module.eval()
    return made


class FullForward(TapModel):
    """The same model without states, as a teacher of another library is."""

    family = "decoder"

    def __init__(self, inner: DecoderStudent) -> None:
        self.inner, self.facts, self.module = inner, inner.facts, torch.nn.Identity()

    def taps(self) -> Any:
        return self.inner.taps()

    def run(self, batch: Batch, wanted: Any, sink: Any) -> None:
        self.inner.run(batch, wanted, sink)


class Choosy(FullForward):
    """Tells that it computed a quarter for the first row of a batch, and half for the second."""

    def taps(self) -> Any:
        return {**self.inner.taps(), EFFORT: Tap(EFFORT, EFFORT, "BL")}

    def run(self, batch: Batch, wanted: Any, sink: Any) -> None:
        self.inner.run(batch, set(wanted) - {EFFORT}, sink)
        if EFFORT in wanted:
            rows, length = batch["input_ids"].shape
            sink(EFFORT, (torch.arange(1, rows + 1) / 4)[:, None].expand(rows, length))


def batch(seed: int, rows: int = 3, length: int = 40) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, FACTS.vocab, (rows, length), generator=draw)
    segments = torch.zeros_like(ids)
    segments[0, 29:] += 1
    segments[1, 25:] += 1
    segments[1, 33:] += 1
    return Batch({"input_ids": ids, "segment_ids": segments}, ids.numel())


def evaluate(
    teacher: Any, students: dict[str, Any], batches: Sequence[Batch], processor: Any = None, **chosen: Any
) -> Any:
    seen: list[int] = []
    found = Perplexity().evaluate(
        EvaluationRequest(teacher, students, lambda: batches, processor=processor, progress=seen.append, **chosen)
    )
    assert seen == [b.units for b in batches]
    return found


def by_hand(teacher: DecoderStudent, student: DecoderStudent, batches: Sequence[Batch]) -> dict[str, Any]:
    """The definition, position by position, in double precision."""
    kl: list[float] = []
    rows: list[list[float]] = []
    nll_t: list[float] = []
    nll_s: list[float] = []
    same: list[bool] = []
    for b in batches:
        lt = teacher.module(b["input_ids"], b["segment_ids"]).double().log_softmax(-1)
        ls = student.module(b["input_ids"], b["segment_ids"]).double().log_softmax(-1)
        for r in range(len(b)):
            rows.append([])
            for t in range(b["input_ids"].shape[1] - 1):
                if b["segment_ids"][r, t] != b["segment_ids"][r, t + 1]:
                    continue
                want = b["input_ids"][r, t + 1]
                nll_t.append(-float(lt[r, t, want]))
                nll_s.append(-float(ls[r, t, want]))
                rows[-1].append(float(F.kl_div(ls[r, t], lt[r, t], log_target=True, reduction="sum")))
                kl.append(rows[-1][-1])
                same.append(bool(lt[r, t].argmax() == ls[r, t].argmax()))
    n, mean = len(kl), sum(kl) / len(kl)
    spread = sum((sum(row) - mean * len(row)) ** 2 for row in rows)
    return {
        "n": n,
        "teacher": math.exp(sum(nll_t) / n),
        "perplexity": math.exp(sum(nll_s) / n),
        "kl": mean,
        "kl_stderr": math.sqrt(spread * len(rows) / (len(rows) - 1)) / n,
        "top1_agreement": sum(same) / n,
    }


@pytest.mark.parametrize("chunk", [1, 7, 128, 10_000])
def test_figures_are_the_definition(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(scores, "CHUNK", chunk)
    teacher, student, batches = decoder(1), decoder(2), [batch(1), batch(2, rows=2)]
    found = evaluate(teacher, {"student": student}, batches)
    with torch.no_grad():
        want = by_hand(teacher, student, batches)
    assert found.n == want["n"]
    assert found.teacher["perplexity"] == pytest.approx(want["teacher"], rel=1e-5)
    for name in ("perplexity", "kl", "kl_stderr", "top1_agreement"):
        assert found.student[name] == pytest.approx(want[name], rel=1e-5)
    assert found.student["perplexity_ratio"] == pytest.approx(want["perplexity"] / want["teacher"], rel=1e-5)
    assert found.gated == {k: found.student[k] for k in ("perplexity_ratio", "kl", "top1_agreement")}


def test_figures_by_domain_are_those_of_its_documents_alone() -> None:
    teacher, student, b = decoder(1), decoder(2), batch(1)
    b.meta["documents"] = [["a.py", "topics/b.txt"], ["c.md#3", "d.py#0", "e.html"], ["f.py"]]
    code = [(0, 0, 29), (1, 25, 33), (2, 0, 40)]
    found = evaluate(teacher, {"student": student, "other": decoder(3)}, [b])
    masks = {"code": torch.zeros(3, 40), "prose": torch.ones(3, 40)}
    for row, start, stop in code:
        masks["code"][row, start:stop], masks["prose"][row, start:stop] = 1.0, 0.0
    tokens = 0.0
    for domain, mask in masks.items():
        own = evaluate(teacher, {"student": student}, [b.replace(loss_mask=mask)])
        wanted = {n: v for n, v in own.student.items() if "." not in n}
        given = {n.removesuffix(f".{domain}"): v for n, v in found.student.items() if n.endswith(f".{domain}")}
        tokens += given.pop("tokens")
        assert given == pytest.approx(wanted, rel=1e-6)
        assert found.teacher[f"perplexity.{domain}"] == pytest.approx(own.teacher["perplexity"], rel=1e-6)
        assert found.higher(f"kl.{domain}") is False
        assert found.baselines["other"][f"kl.{domain}"] > 0
    assert tokens == found.n
    b.meta["documents"] = [["a.py"], ["b.py"], ["c.py"]]
    assert not [name for name in evaluate(teacher, {"student": student}, [b]).student if "." in name]


def test_the_page_shows_every_domain_with_the_gain_over_each_control() -> None:
    figures = {"perplexity.code": 4.0, "perplexity_ratio.code": 1.1, "kl.code": 0.02, "top1_agreement.code": 0.9}
    figures |= {name.replace("code", "prose"): value for name, value in figures.items()} | {"tokens.code": 100.0}
    rival = {**figures, "kl.code": 0.08}

    told = {"teacher": {"perplexity.code": 3.6}, "student": figures, "baselines": {"window int8": rival}}
    (section,) = sections(SimpleNamespace(eval=told))  # type: ignore[arg-type]
    _, code, prose = section.blocks
    assert [row[0] for row in code.rows] == ["teacher", "student", "window int8"]
    assert code.rows[2][-1] == "0.25×"
    assert prose.rows[2][-1] == "1.00×"
    assert sections(SimpleNamespace(eval={"teacher": {}, "student": {"kl": 1.0}})) == []  # type: ignore[arg-type]


def test_the_teacher_as_its_own_student_is_perfect() -> None:
    found = evaluate(decoder(1), {"student": decoder(1), "other": decoder(2)}, [batch(1)])
    assert found.student["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found.student["perplexity_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert found.student["top1_agreement"] == 1.0
    assert set(found.baselines) == {"other"}
    assert found.baselines["other"]["kl"] > 0.1


def test_document_boundaries_are_not_predicted() -> None:
    b = batch(1)
    next_BL, valid_BL = targets(b)
    assert not valid_BL[:, -1].any()
    assert not valid_BL[0, 28]
    assert valid_BL[0, 27]
    assert valid_BL.sum() == 3 * 39 - 3
    assert torch.equal(next_BL[:, :-1], b["input_ids"][:, 1:])


def test_memory_stays_at_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    from xarch_decoder.factored import FactoredLogits

    seen: list[int] = []
    plain = FactoredLogits.of
    monkeypatch.setattr(FactoredLogits, "of", lambda self, x: seen.append(len(x)) or plain(self, x))
    monkeypatch.setattr(scores, "CHUNK", 16)
    evaluate(decoder(1), {"student": decoder(2)}, [batch(1)])
    assert max(seen) == 16


def test_a_single_row_has_no_standard_error() -> None:
    found = evaluate(decoder(1), {"student": decoder(2)}, [batch(1).narrow(0, 1)])
    assert "kl_stderr" not in found.student


def test_hopeless_students_stay_within_the_numbers() -> None:
    student = decoder(2)
    with torch.no_grad():
        student.decoder.norm.weight.mul_(1e6)
    found = evaluate(decoder(1), {"student": student}, [batch(1)])
    assert math.isfinite(found.student["perplexity"])
    assert math.isfinite(found.student["perplexity_ratio"])
    assert found.student["cross_entropy"] > 700


def test_numbers_that_are_not_finite_stop_the_run() -> None:
    student = decoder(2)
    with torch.no_grad():
        student.decoder.norm.weight[0] = math.nan
    with pytest.raises(NotFiniteError, match="student are not finite") as caught:
        evaluate(decoder(1), {"student": student}, [batch(1)])
    assert caught.value.exit_code == 5


def test_nothing_held_out_is_an_error() -> None:
    with pytest.raises(UsageError, match="no held-out token"):
        evaluate(decoder(1), {"student": decoder(2)}, [])


def test_stepping_and_full_forward_write_the_same() -> None:
    model, prompt = decoder(3), batch(5, rows=2, length=9)["input_ids"]
    with torch.no_grad():
        stepped = continue_greedily(model, prompt, 12)
        full = continue_greedily(FullForward(model), prompt, 12)
    assert stepped.shape == (2, 12)
    assert torch.equal(stepped, full)


def test_samples_show_prompt_and_both_texts(
    tokenizer: Any, folder: Callable[..., Path], open_text: Callable[..., Any]
) -> None:
    batches = list(open_text(folder(words=200), "heldout", samples=2, length=64))[:3]
    same = decoder(1)
    found = evaluate(FullForward(same), {"student": same}, batches, tokenizer)
    assert len(found.samples) == 2
    for sample in found.samples:
        assert sample["teacher"] == sample["student"]
        assert sample["prompt"]
    told = evaluate(same, {"student": Choosy(same)}, batches, tokenizer).samples[2:]
    assert [entry["effort"]["shares"] for entry in told] == [[0.25] * 64, [0.5] * 64, [0.25] * 64]
    (section,) = sections(SimpleNamespace(eval={"samples": told}))  # type: ignore[arg-type]
    assert "".join(part for part, _ in section.blocks[1].parts) == tokenizer.decode(batches[0]["input_ids"][0])
    assert section.blocks[1].caption.startswith("25 % on average")
    other = evaluate(same, {"student": decoder(2)}, batches, tokenizer)
    assert other.samples[0]["prompt"] == found.samples[0]["prompt"]
    assert other.samples[0]["teacher"] == found.samples[0]["teacher"]
    assert other.samples[0]["student"] != other.samples[0]["teacher"]
    unseen = evaluate(same, {"student": Choosy(same)}, batches, tokenizer, wants_samples=False)
    assert unseen.samples == []
    assert unseen.student == evaluate(same, {"student": Choosy(same)}, batches, tokenizer).student
