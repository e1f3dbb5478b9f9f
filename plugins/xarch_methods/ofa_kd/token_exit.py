"""Exit of a student with attention or token mixing.

Legend: B samples, N tokens, P prefix tokens, H and W height and width of the grid, D width, K classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class TokenExit(nn.Module):
    """Tokens [B, P + H W, D], or a grid [B, D, H, W], -> [B, K]: patch merging down to about ``target`` a side,
    transformer blocks, then the mean of the prefix tokens, or of all tokens without any.

    Args:
        own, width, classes: D, the width of the blocks, K.
        blocks: number of blocks.
        grid: (H, W); None if there is none to merge.
        prefix: number of prefix tokens P, which are not merged.
        target: side at which merging stops. heads: of attention.

    Weights start as PyTorch draws them, with a deviation of 1/sqrt(3 width). The authors' 0.02 is the same at their
    width of 768, and too small at 64.
    """

    def __init__(
        self,
        own: int,
        width: int,
        classes: int,
        blocks: int,
        grid: tuple[int, ...] | None,
        prefix: int,
        target: int,
        heads: int,
    ) -> None:
        super().__init__()
        merges = max(int(math.log2(min(grid) / target)), 0) if grid and min(grid) >= target else 0
        self.grid, self.prefix = grid, prefix
        widths = [own, *[width] * merges]
        # GELU after every merge but the last of several, as the authors do.
        last = [merges == 1 or n + 1 < merges for n in range(merges)]
        self.merges = nn.ModuleList(_Merge(a, width, act) for a, act in zip(widths[:-1], last, strict=True))
        # The authors' blocks fail where nothing is merged and the widths differ, and where prefix tokens keep theirs.
        self.patches = nn.Linear(own, width) if not merges and own != width else nn.Identity()
        self.prefixes = nn.Linear(own, width) if prefix and own != width else nn.Identity()
        self.blocks = nn.Sequential(*[_Block(width, math.gcd(width, heads)) for _ in range(blocks)])
        self.classifier = nn.Linear(width, classes)

    def forward(self, value: Tensor) -> Tensor:
        """Return logits [B, K]."""
        tokens_BND = rearrange(value, "b d h w -> b (h w) d") if value.ndim == 4 else value
        prefix_BPD, patch_BND = tokens_BND[:, : self.prefix], tokens_BND[:, self.prefix :]
        size = self.grid
        for merge in self.merges:
            assert size is not None, "only a grid is merged"
            patch_BND = merge(patch_BND, size)
            size = tuple(side // 2 for side in size)
        parts = [self.prefixes(prefix_BPD)] if self.prefix else []
        tokens_BND = self.blocks(torch.cat([*parts, self.patches(patch_BND)], 1))
        made: Tensor = self.classifier(tokens_BND[:, : self.prefix or None].mean(1))
        return made


class _Merge(nn.Module):
    """2x2 neighbours become one token; an odd grid is averaged to an even one first."""

    def __init__(self, own: int, width: int, activates: bool) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(4 * own), nn.Linear(4 * own, width, bias=False)
        self.act = nn.GELU() if activates else nn.Identity()

    def forward(self, value_BND: Tensor, size: tuple[int, ...]) -> Tensor:
        grid_BDHW = rearrange(value_BND, "b (h w) d -> b d h w", h=size[0])
        if size[0] % 2 or size[1] % 2:
            grid_BDHW = F.adaptive_avg_pool2d(grid_BDHW, (size[0] // 2 * 2, size[1] // 2 * 2))
        joined_BNE = rearrange(grid_BDHW, "b d (h down) (w across) -> b (h w) (d down across)", down=2, across=2)
        merged: Tensor = self.act(self.linear(self.norm(joined_BNE)))
        return merged


class _Block(nn.Module):
    """A pre-norm transformer block without bias in queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, value_BND: Tensor) -> Tensor:
        qkv_BNF = self.qkv(self.norm1(value_BND))
        q, k, v = rearrange(qkv_BNF, "b n (three heads e) -> three b heads n e", three=3, heads=self.heads)
        mixed_BHNE = F.scaled_dot_product_attention(q, k, v)
        value_BND = value_BND + self.out(rearrange(mixed_BHNE, "b heads n e -> b n (heads e)"))
        made: Tensor = value_BND + self.mlp(self.norm2(value_BND))
        return made
