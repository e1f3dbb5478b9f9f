"""Built-in optimisers as registered kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from xarch.contracts.optimiser import OptimiserKind
from xarch.contracts.options import Options
from xarch.optim.lamb import Lamb
from xarch.optim.muon import Muon, layer_matrices, update_work

Groups = Sequence[Mapping[str, Any]]


class AdamOptions(Options):
    """Options of ``adamw`` and ``lamb``."""

    betas: tuple[float, float] = Field((0.9, 0.95), description="weights of the past in both running means")
    eps: float = Field(1e-8, gt=0)

    @model_validator(mode="after")
    def _below_one(self) -> AdamOptions:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas are two numbers from 0 to below 1, e.g. [0.9, 0.999]")
        return self


class AdamWKind(OptimiserKind):
    """``adamw``: Adam with decoupled weight decay (arXiv 1711.05101)."""

    Options = AdamOptions

    def build(self, groups: Groups, lr: float, options: AdamOptions, *, fused: bool) -> torch.optim.Optimizer:
        chosen = [dict(group) for group in groups]
        return torch.optim.AdamW(chosen, lr=lr, betas=options.betas, eps=options.eps, fused=fused or None)


class SGDOptions(Options):
    """Options of ``sgd``."""

    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _momentum(self) -> SGDOptions:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum, e.g. {momentum: 0.9, nesterov: true}")
        return self


class SGDKind(OptimiserKind):
    """``sgd``: stochastic gradient descent with momentum; its weight decay is added to the gradient."""

    Options = SGDOptions
    rest = "sgd"

    def build(self, groups: Groups, lr: float, options: SGDOptions, *, fused: bool) -> torch.optim.Optimizer:
        chosen = [dict(group) for group in groups]
        return torch.optim.SGD(chosen, lr=lr, momentum=options.momentum, nesterov=options.nesterov, fused=fused or None)

    def moments(self) -> int:
        return 1


class LambOptions(AdamOptions):
    """Options of ``lamb``."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-6, gt=0)


class LambKind(OptimiserKind):
    """``lamb``: AdamW whose step has the size of the weight (arXiv 1904.00962), for large batches."""

    Options = LambOptions
    rest = "lamb"

    def build(self, groups: Groups, lr: float, options: LambOptions, *, fused: bool) -> torch.optim.Optimizer:
        chosen = [dict(group) for group in groups]
        return Lamb(chosen, lr=lr, betas=options.betas, eps=options.eps)


class MuonOptions(AdamOptions):
    """Options of ``muon``; `betas` and `eps` are those of AdamW for the rest."""

    momentum: float = Field(0.95, ge=0, lt=1, description="weight of the past in the running mean of gradients")


class MuonKind(OptimiserKind):
    """``muon``: orthogonalised momentum for matrices of layers, AdamW for the rest."""

    Options = MuonOptions

    def takes(self, module: nn.Module) -> set[str] | None:
        return layer_matrices(module)

    def rest_options(self, options: MuonOptions) -> Mapping[str, Any]:
        return {"betas": options.betas, "eps": options.eps}

    def build(self, groups: Groups, lr: float, options: MuonOptions, *, fused: bool) -> torch.optim.Optimizer:
        return Muon([dict(group) for group in groups], lr=lr, momentum=options.momentum)

    def work(self, shape: Sequence[int]) -> float:
        return float(update_work(shape)) if len(shape) == 2 else 0.0

    def moments(self) -> int:
        return 1
