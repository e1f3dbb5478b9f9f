"""Class weights from the class counts of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from xarch.contracts.options import Options
from xarch.errors import PlanError


class BalanceOptions(Options):
    """Options of objectives with class weighting."""

    balance: Literal["none", "effective-number", "inverse"] = Field(
        "none", description="weight of a class by its count n: (1 - β) / (1 - β^n) (arXiv 1901.05555), or 1 / n"
    )
    beta: float = Field(0.9999, ge=0, lt=1, description="β of effective-number")


def class_weights(balance: str, beta: float, data: Mapping[str, Any], where: str) -> Tensor | None:
    """Return the weight of every class [K], float32 with mean 1; None for "none".

    Args:
        data: facts of the data set; ``class_counts`` is read.
        where: name of the match, for messages.

    Raises:
        PlanError: the data set has no counts, or a class without samples.
    """
    if balance == "none":
        return None
    count_K = class_counts(data, where, f"`balance: {balance}`")
    weight_K = 1 / count_K if balance == "inverse" else (1 - beta) / (1 - beta**count_K)
    return (weight_K / weight_K.mean()).float()


def class_counts(data: Mapping[str, Any], where: str, reader: str) -> Tensor:
    """Return the training samples of every class [K], float64, each at least 1.

    Args:
        data: facts of the data set; ``class_counts`` is read.
        where: name of the match. reader: what requires the counts. Both for messages.

    Raises:
        PlanError: the data set has no counts, or a class without samples.
    """
    counts = data.get("class_counts")
    if not counts or min(counts) < 1:
        seen = (
            f"class {list(counts).index(min(counts))} has {min(counts)} samples" if counts else "it declares no counts"
        )
        raise PlanError(
            f"matches.{where}: {reader} requires class_counts of the data, at least 1 each; {seen}",
            f"use data whose provider counts its classes, or do without {reader}",
        )
    # On the CPU even when the plan builds on meta: the values are read at run time.
    return torch.tensor(list(counts), dtype=torch.float64, device="cpu")
