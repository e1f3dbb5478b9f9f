"""Fields that read their colours from a feature of their own instead of the shared one of 16 values."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from xarch_field import RadianceField


class LatentField(RadianceField):
    """A field with a feature that means nothing to another field."""

    has_feature = False

    @abstractmethod
    def latent(self, u_N3: Tensor) -> Tensor:
        """What the colour is read from [N, D], of any width D, the same in every direction; u in the unit cube."""
