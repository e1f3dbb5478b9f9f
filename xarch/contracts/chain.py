"""A graph's module as a chain of links, so that an exporter translates links of the same structure once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class Link:
    """One step of a chain.

    Attributes:
        module: called as ``module(*values)``, returns one tensor or a tuple of tensors; depends on nothing else.
        reads: names of the values it is called with: inputs of the chain, or what earlier links give.
        gives: names of the tensors it returns, in order.
        sizes: value it reads -> axis -> name of a size in which links of one structure may differ. Links with such
            sizes have the same structure if they differ in nothing but these and fields marked
            ``xarch.kernels.SIZES_ONLY``, so all that depends on them must come from what the link reads.
    """

    module: nn.Module
    reads: Sequence[str]
    gives: Sequence[str]
    sizes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


class Chain(nn.Module):
    """Links that run one after another, e.g. an embedding, the blocks of a model, and its head.

    As the module of an :class:`~xarch.contracts.export.ExportGraph` it costs the translation of one link per structure
    instead of the whole: two links have the same structure if their modules differ in nothing but the values of
    parameters and buffers, and are called with the same shapes.

    Args:
        owner: the module whose parameters the links use; files name weights as it does.
        links: in the order in which they run.
        inputs: names of the tensors that :meth:`forward` is called with.
        outputs: names of the tensors that it returns.
        constants: further tensors that links read, by name; files name them so.

    Raises:
        ValueError: a link or an output names a value that does not exist yet, or a link gives one that does.
    """

    def __init__(
        self,
        owner: nn.Module,
        links: Sequence[Link],
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        constants: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.owner, self.modules_of_links = owner, nn.ModuleList([link.module for link in links])
        self.links, self.inputs, self.outputs = list(links), list(inputs), list(outputs)
        self.constants = dict(constants or {})
        known = {*inputs, *self.constants}
        for i, link in enumerate(self.links):
            unknown, twice = sorted(set(link.reads) - known), sorted(set(link.gives) & known)
            if unknown or twice or len(set(link.gives)) != len(link.gives):
                raise ValueError(f"link {i} reads {unknown}, which nothing gives, and gives {twice} a second time")
            known |= set(link.gives)
        if set(outputs) - known:
            raise ValueError(f"no link gives {sorted(set(outputs) - known)}")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(self.inputs, inputs, strict=True)) | self.constants
        for link in self.links:
            values.update(link_values(link, values))
        return tuple(values[name] for name in self.outputs)


def link_values(link: Link, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the values that a link gives."""
    found = link.module(*(values[name] for name in link.reads))
    return dict(zip(link.gives, (found,) if isinstance(found, Tensor) else found, strict=True))
