"""How far a classifier's confidence is from its accuracy.

Legend: B images, K classes, N bins of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BINS = 15


class Calibration:
    """Expected calibration error Σ_bins |right answers − sum of confidences| / images (Guo et al., arXiv 1706.04599),
    over :data:`BINS` equal bins; kept by class, so that it is known of any group of classes."""

    def __init__(self) -> None:
        self.images = torch.zeros(0, BINS, dtype=torch.float64)
        self.excess = torch.zeros(0, BINS, dtype=torch.float64)

    def add(self, score_BK: Tensor, label_B: Tensor) -> None:
        """Count images: scores [B, K] and labels [B]."""
        classes = score_BK.shape[-1]
        if not len(self.images):
            self.images, self.excess = (t.new_zeros(classes, BINS) for t in (self.images, self.excess))
        sure_B, said_B = score_BK.double().softmax(-1).max(-1)
        place_B = label_B * BINS + (sure_B * BINS).long().clamp_max(BINS - 1)
        self.images.view(-1).index_add_(0, place_B, torch.ones_like(sure_B))
        self.excess.view(-1).index_add_(0, place_B, (said_B == label_B).double() - sure_B)

    def error(self, classes: Sequence[int] | None = None) -> float:
        """Return the error over images of these classes, by default of all; 0 without images."""
        chosen = slice(None) if classes is None else list(classes)
        images, excess_N = self.images[chosen].sum(), self.excess[chosen].sum(0)
        return float(excess_N.abs().sum() / images) if images else 0.0
