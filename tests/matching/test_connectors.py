"""Connectors: what they give is what they declare, on every layout and on the meta device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.matching.objectives.dense_values import batch, tap, value
from xarch import Connector, MatchContext, PlanError, Tap
from xarch.registry.loader import get_registry

LABELS = Tap("labels", "data", "B")
LOGITS = Tap("logits", "logits", "BK", {"K": 10})


def made(name: str, student: Tap, teacher: Tap | None, data: dict[str, Any] | None = None, **options: Any) -> Connector:
    registry = get_registry()
    kind: type[Connector] = registry.resolve(registry.get("connector", name))
    return kind(student, teacher, kind.Options.model_validate(options), MatchContext("m", data=data or {}))


def fits(connector: Connector, found: torch.Tensor) -> None:
    declared = connector.tap
    assert found.ndim == len(declared.layout)
    for axis, letter in enumerate(declared.layout[1:], 1):
        assert declared.shape[letter] == found.shape[axis], letter


@pytest.mark.parametrize("layout", ["BK", "BLD", "BTD", "BCHW", "BCL", "BLHE", "NF"])
@pytest.mark.parametrize("norm", [False, True])
def test_linear_maps_the_features_of_any_layout(layout: str, norm: bool) -> None:
    torch.manual_seed(0)
    connector = made("linear", tap(layout), tap("BLD", D=9), norm=norm)
    x = value(layout)
    found = connector(x, batch())
    fits(connector, found)
    axis = layout.index("C") if "C" in layout else len(layout) - 1
    want = connector.linear(connector.norm(x.movedim(axis, -1))).movedim(-1, axis)  # type: ignore[operator]
    torch.testing.assert_close(found, want)
    assert connector.couples == "sample"


def test_conv1x1_is_linear_over_channels() -> None:
    torch.manual_seed(0)
    connector = made("conv1x1", tap("BCHW"), tap("BCHW", C=9))
    linear = made("linear", tap("BCHW"), tap("BCHW", C=9))
    linear.linear.weight.data = connector.convolution.weight.data[:, :, 0, 0]  # type: ignore[union-attr,index]
    linear.linear.bias.data = connector.convolution.bias.data  # type: ignore[union-attr]
    found = connector(value("BCHW"), batch())
    fits(connector, found)
    torch.testing.assert_close(found, linear(value("BCHW"), batch()))


@pytest.mark.parametrize("layout", ["BCHW", "BCL", "BLD", "BK"])
def test_a_bridge_reaches_the_widths_and_the_grid_of_the_right_side(layout: str) -> None:
    sizes = {"C": 9, "H": 5, "W": 2, "L": 8, "D": 9, "K": 9}
    right = Tap("t", "hidden", layout, {letter: sizes[letter] for letter in layout[1:]})
    bridge = made("bridge", tap(layout), right)
    found = bridge(value(layout), batch())
    fits(bridge, found)
    assert found.shape == (4, *(sizes[letter] for letter in layout[1:]))
    constant = torch.ones_like(value(layout))
    straight = bridge(constant, batch()).movedim(bridge.axis, -1)  # type: ignore[arg-type]
    torch.testing.assert_close(straight, bridge.linear(torch.ones(6)).expand_as(straight))  # type: ignore[operator]


def test_a_bridge_leaves_positions_that_nobody_declares() -> None:
    bridge = made("bridge", tap("BLD"), Tap("t", "hidden", "BLD", {"D": 9}))
    assert bridge(value("BLD"), batch()).shape == (4, 5, 9)
    assert made("bridge", tap("BCHW"), tap("BCHW", C=9, H=4, W=4), resample=False).tap.shape == {"C": 9, "H": 2, "W": 3}


@pytest.mark.parametrize("layout", ["BCHW", "BCL"])
def test_batch_normalisation_couples(layout: str) -> None:
    """Vision 2.2: the same class couples in one match and not in another."""
    assert made("conv1x1", tap(layout), None, width=3).couples == "sample"
    assert made("conv1x1", tap(layout), None, width=3, norm="batch").couples == "batch"
    assert made("exit", tap(layout), LOGITS).couples == "sample"
    assert made("exit", tap(layout), LOGITS, norm="batch").couples == "batch"


@pytest.mark.parametrize("layout", ["BCHW", "BLD", "BTD", "BK"])
@pytest.mark.parametrize(("name", "options"), [("pool", {}), ("exit", {"hidden": 7}), ("exit", {})])
def test_pooled_connectors_give_the_layout_of_the_right_side(name: str, layout: str, options: dict[str, Any]) -> None:
    connector = made(name, tap(layout), LOGITS, **options)
    found = connector(value(layout), batch())
    fits(connector, found)
    assert connector.tap.layout == "BK"
    assert found.shape == (4, 10)


def test_pooling_is_a_mean_over_positions() -> None:
    connector = made("pool", tap("BCHW"), LOGITS)
    want = connector.linear(value("BCHW").mean((2, 3)))  # type: ignore[operator]
    torch.testing.assert_close(connector(value("BCHW"), batch()), want)


@pytest.mark.parametrize("name", ["pool", "exit"])
@pytest.mark.parametrize(("layout", "mask"), [("BLD", "BL"), ("BCHW", "BH"), ("BCHW", "BHW")])
def test_pooling_leaves_out_masked_positions(name: str, layout: str, mask: str) -> None:
    torch.manual_seed(0)
    connector = made(name, tap(layout), LOGITS).eval()
    assert connector.masks(tap(layout), mask)
    given = value(layout)
    sizes = [given.shape[layout.index(letter)] for letter in mask]
    counted = torch.zeros(sizes)
    counted[:, :1] = 1.0
    axis = layout.index(mask[1])
    short = given.narrow(axis, 0, 1)
    padded = torch.cat([short, torch.full_like(given.narrow(axis, 1, sizes[1] - 1), float("inf"))], axis)
    torch.testing.assert_close(connector(padded, batch(), mask=counted), connector(short, batch()))
    assert connector(padded, batch(), mask=torch.zeros(sizes)).isfinite().all()


def test_an_exit_to_labels_has_the_classes_of_the_data() -> None:
    connector = made("exit", tap("BCHW"), LABELS, {"classes": 12})
    assert (connector.tap.layout, connector.tap.shape["K"]) == ("BK", 12)
    assert connector(value("BCHW"), batch()).shape == (4, 12)


@pytest.mark.parametrize(
    ("name", "layout", "options"),
    [("linear", "BLD", {"norm": True}), ("conv1x1", "BCHW", {"norm": "batch"}), ("exit", "BCHW", {"hidden": 5})],
)
def test_the_plan_counts_them_without_memory(name: str, layout: str, options: dict[str, Any]) -> None:
    right = tap("BCHW", C=9) if name != "exit" else LOGITS
    with torch.device("meta"):
        planned = made(name, tap(layout), right, **options)
    real = made(name, tap(layout), right, **options)
    assert {n: p.shape for n, p in planned.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert all(p.is_meta for p in planned.parameters())
    assert planned.tap == real.tap


def test_what_says_no_width_is_refused() -> None:
    with pytest.raises(PlanError, match="output width"):
        made("linear", tap("BLD"), None)
    with pytest.raises(PlanError, match="output width"):
        made("exit", tap("BCHW"), LABELS)
    with pytest.raises(PlanError, match="no fixed number of features"):
        made("linear", Tap("logits", "logits", "factored-logits", {"V": 9}), tap("BLD"))
    with pytest.raises(PlanError, match="channels before"):
        made("conv1x1", tap("BLD"), tap("BLD"))
