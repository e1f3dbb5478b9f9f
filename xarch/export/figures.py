"""Differences between two arrays, as reported in ``parity.json``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TIE_MARGIN = 1e-3
"""A row whose two largest expected values differ by less than this is a tie and is not counted."""


@dataclass(frozen=True, slots=True)
class Distance:
    """Differences between an output of an exported graph and the student's value.

    Attributes:
        max_abs: largest absolute difference.
        rel_l2: norm of the difference over the norm of the expected array, or over the root of its size if that is 0.
        cosine: cosine of the two as vectors; 1 if both are 0.
    """

    max_abs: float
    rel_l2: float
    cosine: float


def distance(seen: np.ndarray, expected: np.ndarray) -> Distance:
    """Compare two arrays of the same shape with finite elements."""
    if expected.size == 0:
        return Distance(0.0, 0.0, 1.0)
    a, b = seen.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    difference = np.abs(a - b)
    gap, norm_a, norm_b = np.linalg.norm(difference), np.linalg.norm(a), np.linalg.norm(b)
    scale = norm_b if norm_b > 0 else np.sqrt(b.size)
    if norm_a == 0 or norm_b == 0:
        cosine = 1.0 if norm_a == norm_b else 0.0
    else:
        cosine = float(np.clip(np.dot(a / norm_a, b / norm_b), -1.0, 1.0))
    return Distance(float(difference.max()), float(gap / scale), cosine)


def top1(seen: np.ndarray, expected: np.ndarray) -> tuple[int, int, int]:
    """Return (rows whose arg-max agrees, rows counted, ties) over the last axis.

    Legend of the shape suffixes: R rows, V classes.
    """
    expected_RV = expected.reshape(-1, expected.shape[-1])
    seen_RV = seen.reshape(expected_RV.shape)
    if expected_RV.shape[0] == 0 or expected_RV.shape[1] < 2:
        return 0, 0, 0
    best_R2 = np.partition(expected_RV, -2, axis=-1)[:, -2:].astype(np.float64)
    clear_R = best_R2[:, 1] - best_R2[:, 0] >= TIE_MARGIN
    agree_R = (seen_RV.argmax(-1) == expected_RV.argmax(-1)) & clear_R
    return int(agree_R.sum()), int(clear_R.sum()), int((~clear_R).sum())
