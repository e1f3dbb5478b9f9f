"""Optimisers, their wrappers and learning rates: what torch lacks, and the kinds by which a stage names them."""

from __future__ import annotations

from xarch.optim.lamb import Lamb
from xarch.optim.muon import Muon, layer_matrices
from xarch.optim.schedules import LearningRate

__all__ = ["Lamb", "LearningRate", "Muon", "layer_matrices"]
