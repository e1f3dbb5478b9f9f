"""Optimisers that torch lacks or has only in a form that is slow where xarch runs."""

from __future__ import annotations

from xarch.optim.muon import Muon, layer_matrices

__all__ = ["Muon", "layer_matrices"]
