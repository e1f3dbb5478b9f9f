"""Sums over predicted tokens from which perplexity, KL and agreement are computed.

Legend: B batch, L tokens, T tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xarch import Batch, XarchError
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
    row_T = torch.arange(len(batch), device=next_T.device).repeat_interleave(next_BL.shape[1])
    kl_rows = {name: torch.zeros(len(batch), dtype=torch.float64) for name in models}
    walks = {name: logits.chunks(CHUNK) for name, logits in models.items()}
    known = None if teacher is None else teacher.chunks(CHUNK)
    for start in range(0, len(next_T), CHUNK):
        keep_T = valid_T[start : start + CHUNK]
        want_T, which_T = next_T[start : start + CHUNK][keep_T], row_T[start : start + CHUNK][keep_T]
        teacher_TV = None if known is None else next(known)[1][keep_T].log_softmax(-1)
        if teacher_TV is not None:
            _add_predictions(scores["teacher"], teacher_TV, want_T)
        for name, walk in walks.items():
            logits_TV = next(walk)[1]
            model_TV = logits_TV[keep_T].log_softmax(-1)
            _add_predictions(scores[name], model_TV, want_T)
            if teacher_TV is None:
                continue
            _check_words(logits_TV, teacher_TV, name)
            scores[name].agree += int((model_TV.argmax(-1) == teacher_TV.argmax(-1)).sum())
            kl_T = (teacher_TV.exp() * (teacher_TV - model_TV)).sum(-1)
            kl_rows[name].index_add_(0, which_T.cpu(), kl_T.double().cpu())
    if teacher is not None:
        for name, rows in kl_rows.items():
            scores[name].kl_rows += rows.tolist()
            scores[name].token_rows += valid_BL.sum(1).tolist()
    for name, score in scores.items():
        if not math.isfinite(score.nll) or not all(map(math.isfinite, score.kl_rows)):
            raise NotFiniteError(
                f"the distributions of the {name} are not finite on held-out text",
                "check the stages' losses in report.html; lower their learning rates",
            )


def _add_predictions(score: Scores, log_p_TV: Tensor, want_T: Tensor) -> None:
    score.tokens += len(want_T)
    score.nll -= float(log_p_TV.gather(-1, want_T[:, None]).double().sum())
    score.hits += int((log_p_TV.argmax(-1) == want_T).sum())


def _check_words(logits_TV: Tensor, teacher_TV: Tensor, name: str) -> None:
    if logits_TV.shape[-1] != teacher_TV.shape[-1]:
        raise XarchError(
            f"{name} predicts {logits_TV.shape[-1]} tokens, the teacher {teacher_TV.shape[-1]}; "
            "perplexity compares equal vocabularies"
        )
