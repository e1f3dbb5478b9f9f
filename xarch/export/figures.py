"""How far two arrays are apart, in the figures of ``parity.json``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TIE_MARGIN = 1e-3
"""A row whose best two expected values are closer than this has no definite arg-max and is not counted."""


@dataclass(frozen=True, slots=True)
class Distance:
    """An output of an exported graph against the student's.

    Attributes:
        max_abs: largest absolute difference.
        rel_l2: norm of the difference over the norm of the expected array; over the root of its size where that is 0.
        cosine: cosine of the two as vectors; 1 where both are 0.
    """

    max_abs: float
    rel_l2: float
    cosine: float


def distance(seen: np.ndarray, expected: np.ndarray) -> Distance:
    """Figures over all elements; both arrays have one shape and hold finite numbers only."""
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
    """(rows whose arg-max agrees, rows counted, rows left out as ties) over the last axis.

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
