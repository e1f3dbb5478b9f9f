"""The optimisers of a stage: a registered algorithm, and a second one for the parameters it does not support."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xarch.config.schema import Optimiser
from xarch.config.validation import validated
from xarch.contracts.optimiser import OptimiserKind
from xarch.errors import UsageError
from xarch.registry.registry import Registry


class Optimisers:
    """The one or two optimisers of a stage behind one interface.

    Args:
        settings: optimiser settings of the stage.
        where: configuration key of the settings, for messages.
        registry: provides the algorithms.
        module: the student's module; the algorithm selects parameters by their modules.
        named: name -> (parameter, its group, its weight decay); student parameters are named as in ``module``.
        fused: whether updates may be fused.

    Attributes:
        multiples: group -> multiple of the learning rate.
        parts: (name of the algorithm, optimiser).
    """

    def __init__(
        self,
        settings: Optimiser,
        where: str,
        registry: Registry,
        module: nn.Module,
        named: Mapping[str, tuple[nn.Parameter, str, float]],
        *,
        fused: bool,
    ) -> None:
        self.multiples: Mapping[str, float] = {}
        self.parts: list[tuple[str, torch.optim.Optimizer]] = []
        self._names = {id(p): name for name, (p, _, _) in named.items()}
        kind: OptimiserKind = registry.create("optimiser", settings.algorithm)
        taken = kind.takes(module)
        mine = {n: v for n, v in named.items() if taken is None or n in taken}
        others = {n: v for n, v in named.items() if n not in mine}
        chosen: list[tuple[str, OptimiserKind, Mapping[str, Any], Mapping[str, Any]]] = [
            (settings.algorithm, kind, settings.options, mine)
        ]
        if others:
            given = kind.rest_options(validated(kind.Options, settings.options, f"{where}.options"))
            chosen.append((kind.rest, registry.create("optimiser", kind.rest), given, others))
        for name, each, options, members in chosen:
            if members:
                checked = validated(each.Options, options, f"{where}.options")
                with registry.guard(registry.get("optimiser", name), where):
                    built = each.build(_groups(members), settings.lr, checked, fused=fused)
                self.parts.append((name, built))

    def step(self, lr: float) -> None:
        """Update at learning rate ``lr`` times each group's multiple."""
        for _, optimiser in self.parts:
            for group in optimiser.param_groups:
                group["lr"] = lr * self.multiples.get(group["group"], 1.0)
            optimiser.step()

    def forget(self) -> None:
        """Reset the moments."""
        for _, optimiser in self.parts:
            optimiser.state.clear()

    def state(self, whole: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the moments of all parameters by "KEY|ALGORITHM|NAME"."""
        moments: dict[str, Tensor] = {}
        for algorithm, optimiser in self.parts:
            for parameter, state in optimiser.state.items():
                name = self._names[id(parameter)]
                for key, value in state.items():
                    if value is not None:
                        tensor = whole(value) if isinstance(value, Tensor) else torch.tensor(value)
                        moments[f"{key}|{algorithm}|{name}"] = tensor
        return moments

    def check(self, moments: Mapping[str, Tensor], hint: str) -> None:
        """Check that moments belong to these parameters and algorithms.

        Raises:
            UsageError: they are not.
        """
        owners = self._owners()
        for key in moments:
            _, was, name = key.split("|", 2)
            if name not in owners:
                raise UsageError(f"the checkpoint trained {name}, the plan does not", hint)
            now = owners[name][0]
            if was != now:
                raise UsageError(f"the checkpoint trained {name} with {was}, the plan uses {now}", hint)

    def load(self, moments: Mapping[str, Tensor], like: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Restore the result of :meth:`state`; ``like`` places a tensor like its parameter."""
        owners = self._owners()
        self.forget()
        for key, tensor in moments.items():
            part, _, name = key.split("|", 2)
            _, optimiser, parameter = owners[name]
            value: Any = tensor.clone() if tensor.ndim == 0 else like(tensor.clone(), parameter)
            on_device = tensor.ndim == 0 and optimiser.param_groups[0].get("fused")
            optimiser.state[parameter][part] = value.to(parameter.device) if on_device else value

    def _owners(self) -> dict[str, tuple[str, torch.optim.Optimizer, nn.Parameter]]:
        return {
            self._names[id(p)]: (name, optimiser, p)
            for name, optimiser in self.parts
            for group in optimiser.param_groups
            for p in group["params"]
        }


def _groups(members: Mapping[str, tuple[nn.Parameter, str, float]]) -> list[dict[str, Any]]:
    buckets: dict[tuple[str, float], list[nn.Parameter]] = {}
    for parameter, group, decay in members.values():
        buckets.setdefault((group, decay), []).append(parameter)
    return [
        {"params": parameters, "group": group, "multiple": 1.0, "weight_decay": decay}
        for (group, decay), parameters in buckets.items()
    ]
