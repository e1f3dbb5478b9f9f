"""Sums over predicted tokens from which perplexity, KL and agreement are computed.

Legend: B batch, L tokens, T tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xarch import Batch, XarchError
from xarch_decoder.domains import domains_of
from xarch_decoder.factored import FactoredLogits

CHUNK = 128
"""Tokens whose distributions are held at once: 128 x vocabulary 49k x 4 bytes = 25 MB per tensor."""


class NotFiniteError(XarchError):
    """A model returned non-finite values on held-out text (exit code 5, as for diverged training)."""

    exit_code = 5
    kind = "diverged"


class Scores:
    """Running sums of one model, by row where a standard error is needed."""

    def __init__(self) -> None:
        self.tokens = 0
        self.nll = 0.0
        self.agree = 0
        self.hits = 0
        self.kl_rows: list[float] = []
        self.token_rows: list[int] = []
        self.parts: dict[str, Scores] = {}
        """The same sums by domain."""

    @property
    def cross_entropy(self) -> float:
        """Return the mean negative log-likelihood of the next token, nats/token."""
        return self.nll / self.tokens

    @property
    def kl(self) -> float:
        """Return the mean KL(teacher || this model), nats/token."""
        return sum(self.kl_rows) / self.tokens

    @property
    def kl_stderr(self) -> float:
        """Return the standard error of :attr:`kl` over rows, weighted by their tokens; nan for a single row."""
        rows = len(self.kl_rows)
        if rows < 2:
            return math.nan
        mean = self.kl
        spread = sum((s - mean * n) ** 2 for s, n in zip(self.kl_rows, self.token_rows, strict=True))
        return math.sqrt(spread * rows / (rows - 1)) / self.tokens


def targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return (next token [B, L], whether to predict it [B, L]).

    The last position of a row has no next token, and the last of a document none in the same document; a ``loss_mask``
    [B, L] excludes further positions.
    """
    ids_BL, segments_BL = batch["input_ids"], batch.get("segment_ids")
    next_BL = torch.zeros_like(ids_BL)
    next_BL[:, :-1] = ids_BL[:, 1:]
    valid_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
    valid_BL[:, :-1] = True if segments_BL is None else segments_BL[:, 1:] == segments_BL[:, :-1]
    mask_BL = batch.get("loss_mask")
    return next_BL, valid_BL if mask_BL is None else valid_BL & (mask_BL > 0)


def add_batch(
    batch: Batch, teacher: FactoredLogits | None, models: dict[str, FactoredLogits], scores: dict[str, Scores]
) -> None:
    """Add a batch to the sums of the teacher (named "teacher"), if any, and of every model.

    No [B, L, V] tensor is materialised.

    Raises:
        NotFiniteError: a distribution is not finite.
    """
    next_BL, valid_BL = targets(batch)
    next_T, valid_T = next_BL.flatten(), valid_BL.flatten()
    domains, part_BL = domains_of(batch)
    sums = {name: _BatchSums(len(batch), domains) for name in scores}
    # A row of the sums for every row of the batch and domain.
    place_BL = torch.arange(len(batch), device=next_T.device)[:, None] * len(domains) + part_BL
    place_T = place_BL.flatten()
    walks = {name: logits.chunks(CHUNK) for name, logits in models.items()}
    known = None if teacher is None else teacher.chunks(CHUNK)
    for start in range(0, len(next_T), CHUNK):
        keep_T = valid_T[start : start + CHUNK]
        want_T, at_T = next_T[start : start + CHUNK][keep_T], place_T[start : start + CHUNK][keep_T].cpu()
        teacher_TV = None if known is None else next(known)[1][keep_T].log_softmax(-1)
        if teacher_TV is not None:
            sums["teacher"].predictions(teacher_TV, want_T, at_T)
        for name, walk in walks.items():
            logits_TV = next(walk)[1]
            model_TV = logits_TV[keep_T].log_softmax(-1)
            sums[name].predictions(model_TV, want_T, at_T)
            if teacher_TV is None:
                continue
            _check_words(logits_TV, teacher_TV, name)
            sums[name].add("agree", model_TV.argmax(-1) == teacher_TV.argmax(-1), at_T)
            sums[name].add("kl", (teacher_TV.exp() * (teacher_TV - model_TV)).sum(-1), at_T)
    for name, score in scores.items():
        sums[name].into(score, compared=teacher is not None and name in models)
        if not math.isfinite(score.nll) or not all(map(math.isfinite, score.kl_rows)):
            raise NotFiniteError(
                f"the distributions of the {name} are not finite on held-out text",
                "check the stages' losses in report.html; lower their learning rates",
            )


class _BatchSums:
    """Sums over one batch for every row and domain [B, domains]."""

    def __init__(self, rows: int, domains: list[str]) -> None:
        self.rows, self.domains = rows, domains
        names = ("tokens", "nll", "hits", "agree", "kl")
        self.sums = {name: torch.zeros(rows * len(domains), dtype=torch.float64) for name in names}

    def add(self, name: str, values_T: Tensor, at_T: Tensor) -> None:
        self.sums[name].index_add_(0, at_T, values_T.double().cpu())

    def predictions(self, log_p_TV: Tensor, want_T: Tensor, at_T: Tensor) -> None:
        self.add("tokens", torch.ones_like(want_T), at_T)
        self.add("nll", -log_p_TV.gather(-1, want_T[:, None])[:, 0].double(), at_T)
        self.add("hits", log_p_TV.argmax(-1) == want_T, at_T)

    def into(self, score: Scores, *, compared: bool) -> None:
        by_row = {name: of.view(self.rows, len(self.domains)) for name, of in self.sums.items()}
        _add(score, {name: of.sum(1) for name, of in by_row.items()}, compared=compared)
        for i, domain in enumerate(self.domains):
            part = {name: of[:, i] for name, of in by_row.items()}
            _add(score.parts.setdefault(domain, Scores()), part, compared=compared)


def _add(score: Scores, of: dict[str, Tensor], *, compared: bool) -> None:
    score.tokens += int(of["tokens"].sum())
    score.nll += float(of["nll"].sum())
    score.hits += int(of["hits"].sum())
    score.agree += int(of["agree"].sum())
    if compared:
        own = of["tokens"] > 0
        score.kl_rows += of["kl"][own].tolist()
        score.token_rows += [int(n) for n in of["tokens"][own]]


def _check_words(logits_TV: Tensor, teacher_TV: Tensor, name: str) -> None:
    if logits_TV.shape[-1] != teacher_TV.shape[-1]:
        raise XarchError(
            f"{name} predicts {logits_TV.shape[-1]} tokens, the teacher {teacher_TV.shape[-1]}; "
            "perplexity compares equal vocabularies"
        )
