"""Splits, long tails, augmentation and what each side sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.plugins.pictures.picture_files import pixels, write_folder
from xarch import Batch, StepContext, UsageError
from xarch_pictures.cutmix import CutMix, CutMixOptions
from xarch_pictures.options import Tail
from xarch_pictures.selecting import long_tail, tail_counts


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "a.npz", images=pixels(120), labels=np.arange(120) % 3)
    return tmp_path / "a.npz"


@pytest.mark.parametrize(
    ("classes", "largest", "factor", "total", "ends"),
    [
        (10, 5000, 100, 12406, (5000, 50)),
        (10, 5000, 50, 13996, (5000, 100)),
        (100, 500, 100, 10847, (500, 5)),
        (100, 500, 50, 12608, (500, 10)),
        (10, 6000, 100, 14886, (6000, 60)),
        (10, 1500, 100, 3720, (1500, 15)),
    ],
)
def test_long_tail_counts_are_those_of_the_papers(
    classes: int, largest: int, factor: float, total: int, ends: tuple[int, int]
) -> None:
    counts = tail_counts(classes, largest, Tail(factor=factor))
    assert (sum(counts), (counts[0], counts[-1])) == (total, ends)
    labels = np.repeat(np.arange(classes), largest)
    chosen = long_tail(labels, classes, Tail(factor=factor), seed=0)
    assert np.bincount(labels[chosen]).tolist() == counts
    assert len(set(chosen)) == total


def test_cifar_10_lt_is_exact() -> None:
    assert tail_counts(10, 5000, Tail(factor=100)) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert tail_counts(4, 100, Tail(factor=10, shape="step")) == [100, 100, 10, 10]


def test_a_tail_in_another_order_and_one_that_is_too_long(data: Any, npz: Path) -> None:
    shares = {"validation": 0.0, "calibration": 0.0, "heldout": 0.25}
    counts = data(npz, tail={"factor": 4, "largest": 20, "order": 1}, **shares).info.facts["class_counts"]
    assert sorted(counts) == [5, 10, 20]
    with pytest.raises(UsageError, match="the long tail wants 60"):
        data(npz, tail={"factor": 4, "largest": 60}, **shares).info  # noqa: B018


def test_subsets_never_change_the_other_splits(data: Any, npz: Path) -> None:
    def ids(split: str, **options: Any) -> set[int]:
        return {int(i) for b in data(npz, **options).open(split) for i in b["sample_id"]}

    for split in ("validation", "calibration", "heldout"):
        assert ids(split) == ids(split, limit=10, subset=3, noise=0.5) != set()
    few = data(npz, limit=12)
    assert few.info.facts["class_counts"] == [4, 4, 4]
    assert few.info.facts["samples"]["train"] == 12


def test_labels_that_are_not_given_are_hidden(data: Any, npz: Path) -> None:
    opened = data(npz, labelled=9)
    stream = opened.open(samples=opened.info.facts["samples"]["train"])
    batch = next(stream)
    assert batch["labelled"].sum() == 9
    assert batch["labels"][batch["labelled"] == 0].unique().tolist() == [0]
    assert opened.info.facts["class_counts"] == [3, 3, 3]
    assert next(opened.open("heldout"))["labelled"].min() == 1


def test_noise_changes_training_labels_only(data: Any, npz: Path) -> None:
    def labels(split: str, **options: Any) -> dict[int, int]:
        opened = data(npz, **options)
        batch = next(opened.open(split, samples=opened.info.facts["samples"][split]))
        return dict(zip(batch["sample_id"].tolist(), batch["labels"].tolist(), strict=True))

    clean, noisy = labels("heldout"), labels("heldout", noise=1.0)
    assert clean == noisy
    plain = {"augment": {"crop": "none", "flip": 0}}
    clean, noisy = labels("train", **plain), labels("train", noise=0.6, **plain)
    changed = sum(clean[i] != noisy[i] for i in clean)
    assert 0.2 * len(clean) < changed < 0.6 * len(clean)


def test_each_side_sees_its_own_view(data: Any, npz: Path) -> None:
    same = next(data(npz, teacher_size=16).open())
    assert same["images@teacher"].shape[-2:] == (16, 16)
    shrunk = torch.nn.functional.interpolate(same["images@teacher"], size=8, mode="bilinear", antialias=True)
    assert (shrunk - same["images"]).abs().mean() < 0.2, "other pictures differ by 0.33"
    other = next(data(npz, teacher_view="other").open())
    assert not torch.equal(other["images"], other["images@teacher"])
    plain = data(npz, teacher_view="plain")
    stored = torch.from_numpy(pixels(120)).permute(0, 3, 1, 2).float() / 255
    batch = next(plain.open())
    assert all(any(torch.equal(seen, one) for one in stored) for seen in batch["images@teacher"])
    assert not all(any(torch.equal(seen, one) for one in stored) for seen in batch["images"])
    averaged = next(data(npz, ema_view="plain").open())
    assert torch.equal(averaged["images@ema"], batch["images@teacher"])
    assert torch.equal(averaged.seen_by("ema", "student")["images"], averaged["images@ema"])
    assert "images@teacher" not in averaged.tensors


def test_repeated_augmentation_fills_a_batch_with_draws_of_the_same_pictures(data: Any, npz: Path) -> None:
    opened = data(npz, augment={"repeats": 3})
    batch = next(opened.open())
    assert len(batch) == 6
    assert len(batch["sample_id"].unique()) == 6
    assert torch.equal(batch["labels"][0::3], batch["labels"][2::3])
    assert not torch.equal(batch["images"][0], batch["images"][1])
    assert opened.info.facts["samples"]["train"] % 3 == 0
    with pytest.raises(UsageError, match="multiple"):
        opened.open(samples=7)


def test_timm_transforms_leave_the_training_generators_alone(data: Any, npz: Path) -> None:
    stream = data(npz, augment={"crop": "resized", "auto": "rand-m9-mstd0.5-inc1", "erase": 0.5, "colour": 0.3}).open()
    torch.manual_seed(0)
    next(stream)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    batch = next(stream)
    assert 0 <= batch["images"].min() <= batch["images"].max() <= 1


def test_enlarged_and_grey(data: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "p", 8, side=12)
    batch = next(data(folder, size=24, channels=1).open("heldout"))
    assert batch["images"].shape[1:] == (1, 24, 24)


@pytest.mark.parametrize("strong", [{"auto": "rand-m9-mstd0.5-inc1"}, {"colour": 0.3}, {"colour": 0.3, "erase": 1.0}])
def test_grey_pictures_are_augmented_as_colours_are(data: Any, tmp_path: Path, strong: dict[str, Any]) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(40, 1, 28), labels=np.arange(40) % 2)
    plain = {"crop": "none", "flip": 0}
    batch = next(data(tmp_path / "a.npz", augment={**plain, **strong}).open())
    other = next(data(tmp_path / "a.npz", augment=plain).open())
    assert batch["images"].shape == other["images"].shape == (6, 1, 28, 28)
    assert not torch.allclose(batch["images"], other["images"], atol=0.02)


def mixed(batch: Batch, seed: int = 0, training: bool = True, **options: Any) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    context = StepContext(None, None, training=training, generator=generator)  # type: ignore[arg-type]
    return CutMix(CutMixOptions(**options), {"classes": 3})(batch, context)


def test_cutmix_shares_labels_by_the_area_of_the_box() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 20, 20)
    batch = Batch({"images": images, "images@teacher": images.repeat(1, 1, 2, 2), "labels": torch.arange(6) % 3}, 6)
    for seed in range(6):
        after = mixed(batch, seed)
        own = (after["images"] == images).float().mean((1, 2, 3))
        assert torch.allclose(after["labels"].sum(1), torch.ones(6))
        shown = after["labels"].gather(1, (torch.arange(6) % 3)[:, None])[:, 0]
        assert ((shown - own).abs() < 1e-5).all() or (shown >= own - 1e-5).all()
        small = torch.nn.functional.avg_pool2d(after["images@teacher"], 2)
        assert (small != after["images"]).float().mean() < 0.2
    assert torch.equal(mixed(batch, training=False)["images"], images)
    assert mixed(batch, training=False)["labels"].shape == (6, 3)


def test_cutmix_can_give_way_to_mixup() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 4, 4)
    batch = Batch({"images": images, "labels": torch.arange(6) % 3}, 6)
    after = mixed(batch, mixup=0.8, switch=1.0)
    assert (after["images"].flatten(1).std(1) == 0).all(), "mixup blends whole pictures"
    assert not torch.equal(after["images"], images)
