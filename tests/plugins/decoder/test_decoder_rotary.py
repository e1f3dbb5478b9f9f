"""The rotation written in place: values, gradients, channels that are not rotated, other types."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xarch_decoder.model import rotary
from xarch_decoder.model.rotary import Rotation, rotate, rotation

FREQUENCIES = (1.0, 0.3, 0.01)


def _case(width: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Rotation]:
    x = torch.randn(2, 5, 3, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x, rotation(torch.arange(5).expand(2, -1), FREQUENCIES)


@pytest.mark.parametrize("width", [6, 8])
def test_halves_turn_by_position_times_frequency_and_the_rest_stays(width: int) -> None:
    x, by = _case(width)
    y = rotate(x, by)
    angle = torch.arange(5.0)[:, None] * torch.tensor(FREQUENCIES)
    turned = torch.complex(x[..., :3], x[..., 3:6]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    torch.testing.assert_close(y[..., :6], torch.cat([turned.real, turned.imag], -1))
    assert torch.equal(y[..., 6:], x[..., 6:])


def test_gradients_are_those_of_the_plain_form_and_can_be_differentiated_again() -> None:
    x, by = _case()
    weight = torch.linspace(-1, 2, x.numel()).view_as(x)
    found = []
    for form in (rotate, lambda t, turn: rotary._plain(t, *turn)):
        leaf = x.clone().requires_grad_()
        y = form(leaf, by)
        (first,) = torch.autograd.grad((y * y * weight).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad((first * weight).sum(), leaf)
        found.append((y, first, second))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_gradcheck() -> None:
    x, by = _case(dtype=torch.float64)
    wide = (by[0].double(), by[1].double())
    assert torch.autograd.gradcheck(lambda t: rotate(t, wide), x.requires_grad_())


@pytest.mark.parametrize("layout", ["sliced", "transposed"])
def test_any_strides(layout: str) -> None:
    x, by = _case()
    other = torch.cat([x, x], -1)[..., :8] if layout == "sliced" else x.transpose(1, 2).contiguous().transpose(1, 2)
    assert not other.is_contiguous()
    assert torch.equal(rotate(other, by), rotate(x, by))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_turn_in_the_wider_one_and_come_back(dtype: torch.dtype) -> None:
    x, by = _case(dtype=dtype)
    y = rotate(x, by)
    assert y.dtype == dtype
    torch.testing.assert_close(y, rotary._plain(x.double(), *by).to(dtype))


def test_compiled_without_a_break() -> None:
    x, by = _case()
    compiled = torch.compile(lambda t: rotate(t, by), fullgraph=True, backend="aot_eager")
    leaf, other = (x.clone().requires_grad_() for _ in range(2))
    compiled(leaf).square().sum().backward()
    rotate(other, by).square().sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


def test_angles_of_more_rows_are_refused_and_angles_with_gradients_get_them() -> None:
    x, by = _case()
    with pytest.raises(RuntimeError):
        rotate(x[:1], by)
    cos = by[0].clone().requires_grad_()
    rotate(x, (cos, by[1])).sum().backward()
    assert cos.grad is not None
