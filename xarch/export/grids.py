"""Weights in blocks of few bits, as onnxruntime's block operators read them.

Legend: N output features, K input features, G blocks of a row, S weights of a block, P padding to whole blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 15
"""Largest integer of 4 bits."""

REFINED = 3
"""How often scale and offset are fitted to the integers, and the integers to these."""

EXACT = 1e-3
"""Largest error, in steps, of a block that lies on a grid already."""

SMALLEST = 1e-12


@dataclass(frozen=True)
class Grid:
    """Numbers as ``integers`` [N, G, S] from 0 to 15 · ``scale`` [N, G] + ``offset`` [N, G]."""

    integers: np.ndarray
    scale: np.ndarray
    offset: np.ndarray


def affine(weight_NK: np.ndarray, size: int) -> Grid:
    """Return the grid of 16 levels of every block, with least squares where the weights are not on one already."""
    w_BS = np.ascontiguousarray(weight_NK, np.float32).reshape(-1, size)
    low_B = w_BS.min(-1)
    scale_B = np.maximum((w_BS.max(-1) - low_B) / np.float32(LEVELS), np.float32(SMALLEST))
    q_BS = _levels(w_BS, scale_B, low_B)
    apart = np.abs(_restored(q_BS, scale_B, low_B) - w_BS).max(-1) > EXACT * scale_B
    if apart.any():
        q_BS[apart], scale_B[apart], low_B[apart] = _fitted(w_BS[apart], q_BS[apart], scale_B[apart], low_B[apart])
    shape = (len(weight_NK), -1)
    return Grid(q_BS.reshape(*shape, size), scale_B.reshape(shape), low_B.reshape(shape))


def _fitted(
    w_BS: np.ndarray, q_BS: np.ndarray, scale_B: np.ndarray, low_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    error_B = np.square(_restored(q_BS, scale_B, low_B) - w_BS).sum(-1)
    mean_B = w_BS.mean(-1)
    for _ in range(REFINED):
        middle_B = q_BS.mean(-1)
        apart_BS = q_BS - middle_B[:, None]
        slope_B = (apart_BS * w_BS).sum(-1) / np.maximum(np.square(apart_BS).sum(-1), np.float32(SMALLEST))
        slope_B = np.where(slope_B > SMALLEST, slope_B, scale_B).astype(np.float32)
        start_B = mean_B - slope_B * middle_B
        next_BS = _levels(w_BS, slope_B, start_B)
        found_B = np.square(_restored(next_BS, slope_B, start_B) - w_BS).sum(-1)
        better = found_B < error_B
        error_B = np.where(better, found_B, error_B)
        q_BS = np.where(better[:, None], next_BS, q_BS)
        scale_B, low_B = np.where(better, slope_B, scale_B), np.where(better, start_B, low_B)
    return q_BS, scale_B, low_B


def _levels(w_BS: np.ndarray, scale_B: np.ndarray, low_B: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.rint((w_BS - low_B[:, None]) / scale_B[:, None]).clip(0, LEVELS)
    return found


def _restored(q_BS: np.ndarray, scale_B: np.ndarray, low_B: np.ndarray) -> np.ndarray:
    found: np.ndarray = q_BS * scale_B[:, None] + low_B[:, None]
    return found


def packed4(weight_NK: np.ndarray, size: int) -> list[np.ndarray]:
    """Return a matrix for x [K] beside the sums of its blocks [G], zero-padded to G + P.

    Returns:
        The integers [N, (K + G + P) / S, S / 2], two in a byte, the first in its low half; the scales; the zero points,
        packed likewise along a row.
    """
    grid = affine(weight_NK, size)
    zero_NG = np.rint(-grid.offset / grid.scale).clip(0, LEVELS)
    left_NG = grid.offset + zero_NG * grid.scale
    rest = _whole(np.pad(left_NG, ((0, 0), (0, -left_NG.shape[1] % size))), size)
    zeros = np.concatenate([zero_NG, rest[2]], 1)
    return [
        _pairs(np.concatenate([grid.integers, rest[0]], 1)),
        np.concatenate([grid.scale, rest[1]], 1).astype(np.float32),
        _pairs(np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))),
    ]


def restored4(parts: list[np.ndarray], features: int, size: int) -> np.ndarray:
    """Return the matrix [N, K] that the parts of :func:`packed4` are for x alone."""
    data, scale, zeros = parts
    both = _apart(data).astype(np.float32).reshape(*scale.shape, size)
    both -= _apart(zeros)[:, : scale.shape[1], None]
    both *= scale[..., None]
    flat = both.reshape(len(scale), -1)
    left_NG = flat[:, features : features + features // size]
    found: np.ndarray = flat[:, :features] + np.repeat(left_NG, size, axis=1)
    return found


def block_sums(features: int, size: int) -> np.ndarray:
    """Return the matrix [K, G + P] by which x is multiplied for the sums of its blocks."""
    groups = features // size
    found = np.zeros((features, groups + -groups % size), np.float32)
    found[np.arange(features), np.arange(features) // size] = 1
    return found


def packed8(weight_NK: np.ndarray, size: int) -> list[np.ndarray]:
    """Return the integers [N, G, S], whose zero is 128, and the scales [N, G]."""
    w_NGS = np.ascontiguousarray(weight_NK, np.float32).reshape(len(weight_NK), -1, size)
    scale_NG = np.maximum(np.abs(w_NGS).max(-1), SMALLEST).astype(np.float32) / np.float32(127)
    q_NGS = np.rint(w_NGS / scale_NG[..., None]) + 128
    return [q_NGS.clip(0, 255).astype(np.uint8), scale_NG]


def _whole(weight_NK: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return integers, scales and zero points from 0 to 15 of every block."""
    w_NGS = weight_NK.reshape(len(weight_NK), -1, size)
    low_NG, high_NG = np.minimum(w_NGS.min(-1), 0), np.maximum(w_NGS.max(-1), 0)
    scale_NG = np.maximum(high_NG - low_NG, SMALLEST) / np.float32(LEVELS)
    zero_NG = np.rint(-low_NG / scale_NG).clip(0, LEVELS)
    q_NGS = (np.rint(w_NGS / scale_NG[..., None]) + zero_NG[..., None]).clip(0, LEVELS)
    return q_NGS, scale_NG, zero_NG


def _apart(pairs: np.ndarray) -> np.ndarray:
    return np.stack([pairs & LEVELS, pairs >> 4], -1).reshape(*pairs.shape[:-1], -1)


def _pairs(numbers: np.ndarray) -> np.ndarray:
    small = numbers.astype(np.uint8)
    return np.ascontiguousarray(small[..., 0::2] | small[..., 1::2] << 4)
