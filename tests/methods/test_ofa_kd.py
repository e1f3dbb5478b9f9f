"""The exits of OFA-KD at students of every kind (F4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import xarch
from xarch import Batch, MatchContext, Student, Tap
from xarch.registry.loader import get_registry
from xarch.testing.models import tiny_configuration
from xarch_image import ImageFacts
from xarch_image.facts import Feature

CLASSES = 5
STUDENTS: dict[str, tuple[int, dict[str, Any]]] = {
    "test_resnet": (32, {}),
    "convnext_atto": (32, {"dims": (8, 12, 16, 24), "depths": (1, 1, 1, 1)}),
    "vit_tiny_patch16_224": (28, {"patch_size": 7, "depth": 6, "embed_dim": 32, "num_heads": 4}),
    "deit_tiny_distilled_patch16_224": (28, {"patch_size": 7, "depth": 6, "embed_dim": 32, "num_heads": 4}),
    "mixer_s32_224": (64, {"mlp_ratio": (0.25, 0.5)}),
    "swin_tiny_patch4_window7_224": (56, {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}),
}
TEACHER = Tap("logits", "logits", "BK", {"K": CLASSES})
CONTEXT = MatchContext("exits", teacher={"classifier.weight": torch.zeros(CLASSES, 48)})


def student(name: str) -> Student:
    size, arguments = STUDENTS[name]
    facts = ImageFacts("none", CLASSES, 3, size, size, (Feature(1, 1, 1),), 1)
    registry = get_registry()
    target = registry.create("target", "timm")
    options = target.Options(model=name, arguments=arguments, size=size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: Student = target.build(facts, options, {}, device=torch.device("cpu"))
    return made


def exit_of(tap: Tap, **options: Any) -> Any:
    registry = get_registry()
    kind = registry.resolve(registry.get("connector", "ofa-exit"))
    return kind(tap, TEACHER, kind.Options(**options), CONTEXT)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_every_stage_gets_classes_and_gives_a_gradient(name: str) -> None:
    model = student(name)
    taps = {key: tap for key, tap in model.taps().items() if key.startswith("stages.")}
    assert len(taps) == 4
    size = STUDENTS[name][0]
    batch = Batch({"images": torch.rand(3, 3, size, size)}, 3)
    values = model.collect(batch, taps)
    kind = "ConvExit" if model.facts.kind == "conv" else "TokenExit"
    for key, tap in taps.items():
        values[key].retain_grad()
        branch = exit_of(tap)
        assert type(branch.net).__name__ == kind
        logits = branch(values[key], batch)
        assert logits.shape == (3, CLASSES)
        logits.square().sum().backward(retain_graph=True)
        assert bool(values[key].grad.any()), f"no gradient reaches {key}"


def test_convolutional_exits_double_the_channels_as_the_authors_do() -> None:
    """ResNet-18 from Swin-T: 64-128-256-768; 128-256-768; 256-768; 512-768."""
    info = {"kind": "conv", "pooled": 512, "last": 4}
    context = MatchContext("exits", teacher={"classifier.weight": torch.zeros(CLASSES, 768)})
    registry = get_registry()
    kind = registry.resolve(registry.get("connector", "ofa-exit"))
    wanted = [[64, 128, 256, 768], [128, 256, 768], [256, 768], [512, 768]]
    for number, widths in enumerate(wanted, 1):
        tap = Tap(f"stages.{number}", "stage", "BCHW", {"C": widths[0]}, info)
        with torch.device("meta"):
            body = kind(tap, TEACHER, kind.Options(), context).net.body
        own = [m for m in body.modules() if isinstance(m, torch.nn.Conv2d) and m.groups == 1]
        through = [own[0].in_channels, *(m.out_channels for m in (own[1::2] if number < 4 else own))]
        assert through == widths


@pytest.mark.parametrize(("grid", "merges"), [(56, 3), (28, 2), (14, 1), (7, 0), (4, 0), (15, 1)])
def test_token_exits_merge_down_to_seven(grid: int, merges: int) -> None:
    info = {"kind": "token", "pooled": 24, "last": 4, "grid": (grid, grid), "prefix_tokens": 1}
    tap = Tap("stages.2", "stage", "BLD", {"L": grid**2 + 1, "D": 8}, info)
    branch = exit_of(tap)
    assert (len(branch.net.merges), len(branch.net.blocks)) == (merges, 2)
    value = torch.randn(2, grid**2 + 1, 8)
    assert branch(value, Batch({"x": value}, 2)).shape == (2, CLASSES)


def test_class_tokens_are_what_a_token_exit_reads() -> None:
    info = {"kind": "token", "pooled": 8, "last": 4, "grid": (2, 2), "prefix_tokens": 1}
    tap = Tap("stages.4", "stage", "BLD", {"L": 5, "D": 8}, info)
    branch = exit_of(tap)
    branch.net.blocks = torch.nn.Identity()
    value = torch.randn(2, 5, 8)
    other = value.clone()
    other[:, 1:] = 7.0
    batch = Batch({"x": value}, 2)
    assert torch.equal(branch(value, batch), branch(other, batch))
    plain = exit_of(Tap("stages.4", "stage", "BLD", {"L": 5, "D": 8}, {**info, "prefix_tokens": 0}))
    plain.net.blocks = torch.nn.Identity()
    torch.testing.assert_close(plain(value, batch), plain.net.classifier(value.mean(1)))


@pytest.mark.slow
def test_four_token_exits_cost_at_most_four_plain_steps(tmp_path: Path) -> None:
    """F14, by the plan's count of operations; measured: 2.3 to 2.6 times the CPU time of a step on labels alone."""
    base = {
        **tiny_configuration("image", tmp_path),
        "student.target": "timm",
        "student.options": {"model": "vit_tiny_patch16_224", "arguments": STUDENTS["vit_tiny_patch16_224"][1]},
        "student.options.size": 28,
        "export.profiles": [],
    }
    plain, exits = (xarch.plan(name, overrides=base).stages[0] for name in ("no-teacher", "ofa-kd"))
    assert len([m for m in exits.matches if m.match == "exits"]) == 4
    assert exits.seconds < 4 * plain.seconds
    assert exits.trains["connectors"] > 0
