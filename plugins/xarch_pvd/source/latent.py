"""Fields whose colour comes from their own feature instead of the shared 16-value one."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from xarch_field import RadianceField


class LatentField(RadianceField):
    """Field with a feature that no other field can interpret."""

    has_feature = False

    @abstractmethod
    def latent(self, u_N3: Tensor) -> Tensor:
        """Return the view-independent feature [N, D] from which colour is computed, of any width D."""
