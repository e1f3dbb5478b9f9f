"""Batch step ``on-policy``: the student generates the continuation of some rows.

Legend: B batch, L tokens, R sampled rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import Batch, BatchStep, Options, StepContext, TensorInfo
from xarch_decoder.factored import FactoredLogits


class OnPolicyOptions(Options):
    """Options of ``on-policy``."""

    share: float = Field(1.0, ge=0, le=1, description="share of rows that the student continues")
    rows: str | None = Field(None, description="batch key [B]: only rows where it is nonzero, e.g. kd_mask of `repeat`")
    prompt: float = Field(0.5, gt=0, lt=1, description="share of a row kept as the prompt, at least one token")
    tokens: int | None = Field(
        None, ge=1, description="tokens sampled after the prompt; default up to the end of the row"
    )
    temperature: float = Field(0.9, gt=0)
    top_k: int | None = Field(128, ge=1, le=1 << 24, description="sample from the k most likely tokens; null: from all")


class OnPolicy(BatchStep):
    """Replaces the tokens after a prompt with samples from the student (DistillSpec, arXiv 2310.08461).

    Adds masks [B, L] for matches, 1 at positions that predict a token of the mask. ``sampled_mask``: sampled tokens;
    ``kd_mask``: these and every token of rows that were not sampled; ``gold_mask``: data tokens of rows that were not
    sampled, with `rows` only of rows outside it. A ``loss_mask`` of the data applies to data tokens. The student
    rereads the whole row for every token, so long samples are slow.
    """

    Options = OnPolicyOptions

    def reads(self) -> Mapping[str, str]:
        return {"input_ids": "BL", **({self.options.rows: "B"} if self.options.rows else {})}

    def makes(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        info = TensorInfo("BL", dict(tensors["input_ids"].shape))
        return {"sampled_mask": info, "kd_mask": info, "gold_mask": info}

    def taps(self) -> Mapping[str, Collection[str]]:
        return {"student": {"logits"}}

    def work(self, sample: Mapping[str, Any], *, student: float, teacher: float) -> float:
        length = int(sample.get("length", 512))
        start, stop = self._span(length)
        return self.options.share * student * sum(range(start, stop)) / length

    def _span(self, length: int) -> tuple[int, int]:
        """Return the first sampled position and the one after the last."""
        start = min(max(round(self.options.prompt * length), 1), length - 1)
        return start, length if self.options.tokens is None else min(start + self.options.tokens, length)

    def __call__(self, batch: Batch, context: StepContext) -> Batch:
        ids_BL = batch["input_ids"].clone()
        counts_BL = batch.get("loss_mask")
        counts_BL = torch.ones_like(ids_BL, dtype=torch.float32) if counts_BL is None else counts_BL.float()
        inside_B = torch.ones(len(batch), dtype=torch.bool, device=ids_BL.device)
        if self.options.rows:
            inside_B = batch[self.options.rows] != 0
        draw_B = torch.rand(len(batch), generator=context.generator).to(ids_BL.device)
        chosen_B = (draw_B < self.options.share) & inside_B
        start, stop = self._span(ids_BL.shape[1])
        changed: dict[str, Tensor] = {}
        segments_BL = batch.get("segment_ids")
        if segments_BL is not None:
            # Sampled tokens continue the document in which the prompt ends.
            whole_BL = segments_BL.clone()
            whole_BL[:, start:stop] = segments_BL[:, start - 1 : start]
            segments_BL = torch.where(chosen_B[:, None], whole_BL, segments_BL)
            changed["segment_ids"] = segments_BL
        if bool(chosen_B.any()):
            segments_RL = None if segments_BL is None else segments_BL[chosen_B]
            ids_BL[chosen_B] = self._sampled(ids_BL[chosen_B], segments_RL, (start, stop), context)
        sampled_BL = torch.zeros_like(counts_BL)
        sampled_BL[chosen_B, start - 1 : stop - 1] = 1.0
        gold_B = ~inside_B if self.options.rows else ~chosen_B
        context.log(sampled=float(sampled_BL.sum()))
        return batch.replace(
            input_ids=ids_BL,
            sampled_mask=sampled_BL,
            kd_mask=sampled_BL + counts_BL * (inside_B & ~chosen_B)[:, None],
            gold_mask=counts_BL * gold_B[:, None],
            **changed,
        )

    def _sampled(
        self, ids_RL: Tensor, segments_RL: Tensor | None, span: tuple[int, int], context: StepContext
    ) -> Tensor:
        for place in range(*span):
            read = {"input_ids": ids_RL[:, :place]}
            if segments_RL is not None:
                read["segment_ids"] = segments_RL[:, :place]
            values = context.student.collect(Batch(read, read["input_ids"].numel()), {"logits"})
            logits: FactoredLogits = values["logits"]
            z_RV = logits.of(logits.x_BLD[:, -1]) / self.options.temperature
            if self.options.top_k is not None and self.options.top_k < z_RV.shape[1]:
                least_R1 = z_RV.topk(self.options.top_k).values[:, -1:]
                z_RV = z_RV.masked_fill(z_RV < least_R1, -torch.inf)
            # Sample on the CPU: every device that computes the same logits then yields the same tokens.
            choice_R1 = torch.multinomial(z_RV.softmax(-1).cpu(), 1, generator=context.generator)
            ids_RL[:, place] = choice_R1[:, 0].to(ids_RL.device)
        return ids_RL
