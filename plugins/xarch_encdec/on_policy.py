"""Batch step ``write-answers``: the student writes the answers of some pairs, and the teacher judges them.

Legend: B pairs, R pairs whose answers are written, S source tokens, T decoder tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import Batch, BatchStep, Options, PlanError, StepContext, TensorInfo
from xarch_encdec.rows import joined_rows
from xarch_encdec.student import EncDecStudent

READ = {"input_ids": "BS", "attention_mask": "BS", "decoder_input_ids": "BT", "answer_mask": "BT"}

GOLD = "gold_mask"

TEACHER = ("input_ids", "segment_ids")
"""Keys of the view of a decoder as a teacher."""


class WriteAnswersOptions(Options):
    """Options of ``write-answers``."""

    share: float = Field(0.25, ge=0, le=1, description="share of pairs whose answers the student writes")
    tokens: int | None = Field(None, ge=1, description="most tokens written; default: as many as answers may have")
    temperature: float = Field(0.9, gt=0)
    top_k: int | None = Field(128, ge=1, le=1 << 24, description="draw from the k most likely tokens; null: from all")


class WriteAnswers(BatchStep):
    """Replaces answers with samples of the student (DistillSpec, arXiv 2310.08461), drawn with its caches.

    ``answer_mask`` then counts what was written, up to the end token. Adds ``gold_mask`` [B, T]: the answers of the
    data alone, for a match with labels.
    """

    Options = WriteAnswersOptions

    def reads(self) -> Mapping[str, str]:
        return READ

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        views = {f"{key}@teacher" for key in TEACHER} & set(tensors)
        mask = TensorInfo("BT", dtype="float32")
        return {
            "decoder_input_ids": TensorInfo("BT"),
            "answer_mask": mask,
            GOLD: mask,
            **{key: TensorInfo("BL") for key in views},
        }

    def taps(self) -> Mapping[str, Collection[str]]:
        return {"student": {"logits"}}

    def work(self, sample: Mapping[str, Any], *, student: float, teacher: float) -> float:
        return float(self.options.share * student)

    def __call__(self, batch: Batch, context: StepContext) -> Batch:
        drawn_B = torch.rand(len(batch), generator=context.generator).to(batch.device) < self.options.share
        decoder_BT, mask_BT = batch["decoder_input_ids"].clone(), batch["answer_mask"].clone()
        if bool(drawn_B.any()):
            plain = {key: batch[key][drawn_B] for key in READ}
            decoder_BT[drawn_B], mask_BT[drawn_B] = self._written(plain, context)
        gold_BT = mask_BT * ~drawn_B[:, None]
        context.log(written=float((mask_BT * drawn_B[:, None]).sum()))
        changed = {"decoder_input_ids": decoder_BT, "answer_mask": mask_BT, GOLD: gold_BT}
        if f"{TEACHER[0]}@teacher" in batch.tensors:
            rows = joined_rows(batch.replace(decoder_input_ids=decoder_BT))
            changed |= {f"{key}@teacher": rows[key] for key in TEACHER}
        return batch.replace(**changed)

    def _written(self, pairs: Mapping[str, Tensor], context: StepContext) -> tuple[Tensor, Tensor]:
        """Return decoder tokens and their mask [R, T]; what follows an end token stays as it was and does not count."""
        student = context.student
        if not isinstance(student, EncDecStudent):
            raise PlanError(
                f"write-answers needs an encoder-decoder as the student, not a {type(student).__name__}",
                "leave the step out: --set stages.NAME.batch.steps.write-answers=null",
            )
        model, mask_RS = student.module, pairs["attention_mask"]
        ids_RT = pairs["decoder_input_ids"].clone()
        counts_RT = torch.zeros_like(pairs["answer_mask"])
        ends = torch.tensor(student.facts.eos, dtype=torch.long, device=ids_RT.device)
        source, past = model.encode(pairs["input_ids"], mask_RS, model.opened()), None
        open_R = torch.ones(len(ids_RT), dtype=torch.bool, device=ids_RT.device)
        last = min(self.options.tokens or ids_RT.shape[1], ids_RT.shape[1] - 1)
        for t in range(last):
            final_R1D, past = model.decode(ids_RT[:, t : t + 1], mask_RS, source, past)
            token_R = self._drawn(model.logits(final_R1D).of(final_R1D[:, -1]), context.generator)
            ids_RT[:, t + 1] = torch.where(open_R, token_R, ids_RT[:, t + 1])
            counts_RT[:, t] = open_R.to(counts_RT.dtype)
            open_R = open_R & ~torch.isin(token_R, ends)
            if not bool(open_R.any()):
                break
        return ids_RT, counts_RT

    def _drawn(self, logits_RV: Tensor, generator: torch.Generator) -> Tensor:
        z_RV = logits_RV / self.options.temperature
        if self.options.top_k is not None and self.options.top_k < z_RV.shape[1]:
            z_RV = z_RV.masked_fill(z_RV < z_RV.topk(self.options.top_k).values[:, -1:], -torch.inf)
        # On the CPU, so that every device that computes the same logits draws the same tokens.
        return torch.multinomial(z_RV.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(logits_RV.device)
