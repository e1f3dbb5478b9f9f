"""Published ways to bound a key/value cache, at the state bytes of the students of constant state.

    python benchmarks/cache_schemes.py --wikitext wikitext2/test.txt

Written anew from their papers' descriptions, token by token, in all layers of the teacher and without training:

- H2O (arXiv 2306.14048): half of the places for the most recent tokens, half for those with the most attention so far.
- TOVA (arXiv 2401.06104): the token that the newest one attends to least leaves.
- D2O (arXiv 2406.13035), its token level: H2O whose leaving token is merged into the one with the nearest key, if that
  is nearer than a running mean of such distances.
- KVMerger (arXiv 2407.08454), in a streaming form: of the older half, the two neighbours with the most similar keys
  become one, weighted by a Gaussian of their distance to the one with more attention.

StreamingLLM is the window of ``constant_state.py``, whose rows, bytes and figures these are compared with. In int8,
keys and values are rounded as they arrive; what is merged is not rounded again, and scores take no bytes, in favour of
the schemes. Nothing is random. An interrupted measurement resumes.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor

import xarch
from benchmarks import page
from benchmarks.constant_state import BYTES, TEACHER, batches, texts
from benchmarks.store import Store, add_options, header
from xarch import Teacher
from xarch_decoder.controls import window_layout
from xarch_decoder.copying import trunk_tensors
from xarch_decoder.model.memory import MemoryAttention
from xarch_decoder.model.mixer import SequenceInfo
from xarch_decoder.scores import Scores, add_batch
from xarch_decoder.student import DecoderStudent

CONTEXT = 2048
PRECISIONS = ("float32", "int8")


class Cache:
    """Keys and values of one layer: at most ``places`` tokens of each of K heads, plus the newest while it is read.

    Attributes:
        keys, values: [K, N, E], oldest first.
        received: attention so far [K, N].
        latest: attention of the newest token [K, N].
    """

    recent_share: ClassVar[float] = 0.5

    def __init__(self, heads: int, width: int, places: int) -> None:
        self.places, self.recent = places, max(1, round(self.recent_share * places))
        self.keys = self.values = torch.zeros(heads, 0, width)
        self.received = self.latest = torch.zeros(heads, 0)

    def read(self, q_KGE: Tensor, key_KE: Tensor, value_KE: Tensor, scale: float) -> Tensor:
        """Add a token and return what its queries read [K, G, E]; then make room."""
        self.keys = torch.cat([self.keys, key_KE[:, None]], 1)
        self.values = torch.cat([self.values, value_KE[:, None]], 1)
        weights_KGN = (scale * q_KGE @ self.keys.mT).softmax(-1)
        self.latest = weights_KGN.sum(1)
        self.received = F.pad(self.received, (0, 1)) + self.latest
        read_KGE = weights_KGN @ self.values
        if self.keys.shape[1] > self.places:
            self.shrink()
        return read_KGE

    def shrink(self) -> None:
        """Drop one token of every head: the one of the older half with the least attention (H2O)."""
        self.drop(self.leaving())

    def leaving(self) -> Tensor:
        """Return which of the older tokens has the least attention [K]."""
        return self.received[:, : -self.recent].argmin(1)

    def drop(self, which_K: Tensor) -> None:
        """Remove one token of every head."""
        keep_KN = torch.ones_like(self.received, dtype=torch.bool).scatter_(1, which_K[:, None], value=False)
        heads, left = len(which_K), self.received.shape[1] - 1
        self.keys = self.keys[keep_KN].view(heads, left, -1)
        self.values = self.values[keep_KN].view(heads, left, -1)
        self.received = self.received[keep_KN].view(heads, left)


class TOVA(Cache):
    def leaving(self) -> Tensor:
        return self.latest.argmin(1)


class D2O(Cache):
    memory: ClassVar[float] = 0.7
    """Weight of the newest similarity in the running threshold."""

    def __init__(self, heads: int, width: int, places: int) -> None:
        super().__init__(heads, width, places)
        self.threshold: Tensor | None = None

    def shrink(self) -> None:
        which_K, heads = self.leaving(), torch.arange(len(self.keys))
        key_KE, value_KE = self.keys[heads, which_K], self.values[heads, which_K]
        alike_KN = F.cosine_similarity(self.keys, key_KE[:, None], dim=-1)
        alike_KN.scatter_(1, which_K[:, None], -2.0)
        best_K, into_K = alike_KN.max(1)
        old = best_K if self.threshold is None else self.threshold
        merged_K = best_K >= old
        self.threshold = self.memory * best_K + (1 - self.memory) * old
        # Weights exp(similarity) of the leaving token against exp(1) of the kept one.
        part_K1 = torch.where(merged_K, best_K.exp() / (best_K.exp() + torch.e), 0.0)[:, None]
        self.keys, self.values = self.keys.clone(), self.values.clone()
        self.keys[heads, into_K] = (1 - part_K1) * self.keys[heads, into_K] + part_K1 * key_KE
        self.values[heads, into_K] = (1 - part_K1) * self.values[heads, into_K] + part_K1 * value_KE
        self.drop(which_K)


class KVMerger(Cache):
    def shrink(self) -> None:
        heads = torch.arange(len(self.keys))
        older = self.keys[:, : -self.recent]
        first_K = F.cosine_similarity(older[:, 1:], older[:, :-1], dim=-1).argmax(1)
        swap_K = self.received[heads, first_K] < self.received[heads, first_K + 1]
        pivot_K = torch.where(swap_K, first_K + 1, first_K)
        other_K = torch.where(swap_K, first_K, first_K + 1)
        apart_K = (self.keys[heads, pivot_K] - self.keys[heads, other_K]).square().sum(-1)
        # The deviation is that of the pair's own distances, as in the paper: exp(-1/2) unless both are equal.
        weight_K1 = torch.where(apart_K > 0, torch.exp(torch.tensor(-0.5)), 1.0)[:, None]
        self.keys, self.values, self.received = self.keys.clone(), self.values.clone(), self.received.clone()
        for kept in (self.keys, self.values):
            kept[heads, pivot_K] = (kept[heads, pivot_K] + weight_K1 * kept[heads, other_K]) / (1 + weight_K1)
        self.received[heads, pivot_K] += self.received[heads, other_K]
        self.drop(other_K)


SCHEMES = {"H2O": Cache, "TOVA": TOVA, "D2O": D2O, "KVMerger": KVMerger}


class SchemeAttention(MemoryAttention):
    """The teacher's attention over a cache that a scheme bounds to the places of a window with sinks."""

    def __init__(self, *args: Any, scheme: type[Cache], **options: Any) -> None:
        super().__init__(*args, **options)
        self.scheme = scheme

    def remember(self, q_BLHE: Tensor, k_BLKE: Tensor, v_BLKE: Tensor, sequence: SequenceInfo) -> Tensor:
        if self.layout.exact == "int8":
            k_BLKE, v_BLKE = _rounded(k_BLKE), _rounded(v_BLKE)
        rows = []
        for q_LHE, k_LKE, v_LKE in zip(q_BLHE, k_BLKE, v_BLKE, strict=True):
            cache = self.scheme(self.kv_heads, self.head_dim, self.layout.sinks + self.layout.window)
            groups = q_LHE.unflatten(1, (self.kv_heads, -1))
            found = [cache.read(*at, self.scale) for at in zip(groups, k_LKE, v_LKE, strict=True)]
            rows.append(torch.stack(found).flatten(1, 2))
        return torch.stack(rows)


def _rounded(value: Tensor) -> Tensor:
    scale = value.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    return (value / scale).round() * scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True, help="text of WikiText-2's test split")
    parser.add_argument("--bytes", type=int, default=BYTES, help="state bytes a layer")
    add_options(parser, "cache_schemes")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"teacher": TEACHER, "bytes": chosen.bytes, "context": CONTEXT}
    store = Store(chosen.out, header("cache_schemes", settings, threads=1), chosen.fresh)
    teacher = xarch.load_teacher(TEACHER)
    domains = texts(teacher.processor(), chosen.wikitext)
    with torch.no_grad():
        for domain in ("wikitext", "code", "prose"):
            (row,) = batches(domains[domain], CONTEXT)
            known = teacher.collect(row, ["logits"])["logits"]
            for name, scheme in SCHEMES.items():
                for precision in PRECISIONS:
                    if store.find(domain=domain, arm=f"{name} {precision}") is None:
                        point = measure(teacher, row, known, scheme, precision, chosen.bytes)
                        store.add({"domain": domain, "arm": f"{name} {precision}", **point})
                        print(store.points[-1], file=sys.stderr)
    page.show(store.finish())


def measure(teacher: Teacher, row: Any, known: Any, scheme: type[Cache], precision: Any, budget: int) -> dict[str, Any]:
    """Divergence of a scheme on one row."""
    layout = window_layout(teacher.facts, budget, precision)
    assert layout is not None
    mixer = partial(SchemeAttention, layout=layout, scheme=scheme)
    model = DecoderStudent(teacher.facts, [[mixer]] * teacher.facts.layers, device="meta")
    model.module.load_state_dict(trunk_tensors(model, teacher), assign=True)
    model.module.eval()
    scores = {"teacher": Scores(), "student": Scores()}
    begin = time.process_time()
    add_batch(row, known, {"student": model.collect(row, ["logits"])["logits"]}, scores)
    student = scores["student"]
    return {
        "kl": student.kl,
        "ratio": float(torch.tensor(student.cross_entropy - scores["teacher"].cross_entropy).exp()),
        "top1": student.agree / student.tokens,
        "tokens": student.tokens,
        "places": layout.sinks + layout.window,
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


if __name__ == "__main__":
    main()
