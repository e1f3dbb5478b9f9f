"""Taps of timm models: found without tables of names, in every architecture and at small sizes."""

from __future__ import annotations

import pytest
import torch

from xarch import Batch, UsageError
from xarch_image import ImageFacts
from xarch_timm.build import create, describe
from xarch_timm.model import TimmStudent
from xarch_timm.weights import load

SMALL = {
    "test_resnet": ("conv", 0),
    "test_efficientnet": ("conv", 0),
    "test_vit?patch_size=4&depth=4": ("token", 1),
    "deit_tiny_distilled_patch16_224?patch_size=8&depth=5&embed_dim=48&num_heads=2": ("token", 2),
    "swin_tiny_patch4_window7_224?depths=1,1,1,1&embed_dim=24&num_heads=1,2,4,8": ("token", 0),
    "mixer_s32_224?patch_size=8&num_blocks=3&embed_dim=32": ("token", 0),
}
"""Reference -> kind and prefix tokens."""
QUICK = {"test_resnet", "test_vit?patch_size=4&depth=4"}
EVERY_SIZE = [
    "resnet18",
    "resnet50",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "regnety_002",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "mixer_s16_224",
    "resmlp_12_224",
    "gmlp_ti16_224",
    "poolformer_s12",
    "mobilevit_xs",
    "convmixer_1024_20_ks9_p14",
    "eva02_tiny_patch14_224",
    "fastvit_t8",
    "efficientformerv2_s0",
    "hgnetv2_b0",
    "repvgg_a0",
    "mobileone_s0",
    "ghostnet_050",
    "convit_tiny",
    "tnt_s_patch16_224",
    "starnet_s1",
    "mambaout_femto",
    "res2net50_14w_8s",
    "resnest14d",
    "rexnet_100",
    "cait_xxs24_224",
]
FROM_32 = [
    "convnext_atto",
    "densenet121",
    "vgg11_bn",
    "pvt_v2_b0",
    "levit_128s",
    "maxvit_rmlp_pico_rw_256",
    "coatnet_0_rw_224",
    "xcit_nano_12_p16_224",
    "hrnet_w18_small",
    "edgenext_xx_small",
    "coat_tiny",
    "visformer_tiny",
    "twins_pcpvt_small",
    "nest_tiny",
    "mvitv2_tiny",
    "dla34",
]
"""Models whose strides leave nothing of 28 pixels."""


def described(ref: str, size: int) -> ImageFacts:
    from xarch_timm.reference import parse

    named = parse(ref)
    return describe(named.name, classes=5, size=(size, size), arguments=named.arguments)


def check(facts: ImageFacts) -> None:
    """Every tap has its declared form, and the head on the last features is the model."""
    torch.manual_seed(0)
    model = TimmStudent(create(facts), facts)
    for parameter in model.module.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.02)  # zero-initialised heads would make equality vacuous
    assert 3 <= len(facts.features) <= 4
    batch = Batch({"images": torch.rand(2, facts.channels, facts.height, facts.width)}, 2)
    with torch.no_grad():
        values = model.collect(batch, set(model.taps()))
        alone = model.collect(batch, {"logits"})["logits"]
        for name, tap in model.taps().items():
            assert [2, *(tap.shape[letter] for letter in tap.layout[1:])] == list(values[name].shape), name
        for name in ("features.2", f"stages.{len(facts.features)}"):
            assert torch.equal(model.collect(batch, {name})[name], values[name])
    assert float(alone.std()) > 0
    assert torch.allclose(values["logits"], alone, atol=1e-6)


@pytest.mark.parametrize("ref", [r if r in QUICK else pytest.param(r, marks=pytest.mark.slow) for r in SMALL])
def test_kinds_of_architecture(ref: str) -> None:
    facts = described(ref, 32)
    assert (facts.kind, facts.prefix_tokens) == SMALL[ref]
    check(facts)


def test_a_stack_is_tapped_at_a_pyramids_depths() -> None:
    from xarch_timm.build import anatomy

    assert anatomy(described("vit_tiny_patch16_224?embed_dim=24&num_heads=2", 32)).places == (1, 3, 9, 11)
    assert anatomy(described("test_resnet", 64)).places == (1, 2, 3, 4)


def test_token_stages_start_with_the_class_token() -> None:
    facts = described("test_vit?patch_size=8&depth=2", 32)
    model = TimmStudent(create(facts), facts)
    seen = {}
    model.module.blocks[-1].register_forward_hook(lambda m, i, output: seen.setdefault("block", output))
    batch = Batch({"images": torch.rand(1, 3, 32, 32)}, 1)
    with torch.no_grad():
        last = model.collect(batch, {f"stages.{len(facts.features)}"}).popitem()[1]
    assert torch.equal(last, seen["block"])


def test_two_heads_are_taps_and_operating_points_and_their_mean_is_the_model() -> None:
    facts = described("deit_tiny_distilled_patch16_224?patch_size=7&depth=1&embed_dim=16&num_heads=2", 28)
    model = TimmStudent(create(facts), facts)
    torch.manual_seed(0)
    for head in (model.module.head, model.module.head_dist):
        torch.nn.init.normal_(head.weight)  # they start at zero
    batch = Batch({"images": torch.rand(3, 3, 28, 28)}, 3)
    for training in (True, False):
        model.module.train(training)
        found = model.collect(batch, {"logits.cls", "logits.dist", "logits", "pooled"})
        torch.testing.assert_close((found["logits.cls"] + found["logits.dist"]) / 2, found["logits"])
        assert set(model.collect(batch, {"logits.dist"})) == {"logits.dist"}
        tokens = model.collect(batch, {"pooled.cls", "pooled.dist", "pooled"})
        torch.testing.assert_close((tokens["pooled.cls"] + tokens["pooled.dist"]) / 2, tokens["pooled"])
    assert {name: list(v.taps()) for name, v in model.variants().items()} == {"cls": ["logits"], "dist": ["logits"]}
    for name, variant in model.variants().items():
        assert torch.equal(variant.collect(batch, {"logits"})["logits"], found[f"logits.{name}"])
    assert not torch.allclose(found["logits.cls"], found["logits.dist"])
    assert ImageFacts.from_json(facts.to_json()) == facts
    assert set(model.param_groups()["head"]) == {f"{h}.{p}" for h in ("head", "head_dist") for p in ("weight", "bias")}
    plain = described("test_vit?patch_size=8&depth=2", 32)
    assert (plain.heads, dict(TimmStudent(create(plain), plain).variants())) == ((), {})


def test_a_cosine_classifier_compares_directions_and_is_rebuilt_from_the_facts() -> None:
    facts = described("test_resnet?cosine=30", 32)
    model = TimmStudent(create(ImageFacts.from_json(facts.to_json())), facts)
    batch = Batch({"images": torch.rand(2, 3, 32, 32)}, 2)
    found = model.collect(batch, {"pooled", "logits"})
    weight_KD = model.module.get_classifier().weight
    cosine_BK = torch.cosine_similarity(found["pooled"][:, None], weight_KD[None], dim=-1)
    torch.testing.assert_close(found["logits"], 30 * cosine_BK)
    assert model.param_groups()["head"] == ["fc.weight"]
    assert not model.constants(), "no one may take it for linear"
    with pytest.raises(UsageError, match="scale"):
        described("test_resnet?cosine=0", 32)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_any_plain_transformer_can_have_a_second_token_with_a_classifier_of_its_own(name: str) -> None:
    small = "patch_size=8&depth=1&embed_dim=16&num_heads=2"
    facts = described(f"{name}?distilled=true&{small}", 32)
    assert (facts.heads, facts.prefix_tokens) == (("cls", "dist"), 2)
    model = TimmStudent(create(ImageFacts.from_json(facts.to_json())), facts)
    found = model.collect(Batch({"images": torch.rand(2, 3, 32, 32)}, 2), {"logits", "logits.cls", "logits.dist"})
    torch.testing.assert_close(found["logits"], (found["logits.cls"] + found["logits.dist"]) / 2)
    assert not torch.allclose(found["logits.cls"], found["logits.dist"])
    again = create(facts)
    load(again, facts, model.module.state_dict(), "weights", resize=True)
    assert torch.equal(again.dist_token, model.module.dist_token)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("test_resnet", "those of a ResNet"),
        ("vit_small_patch14_reg4_dinov2", "registers"),
        ("vit_base_patch16_siglip_224", "its grid"),
    ],
)
def test_what_has_no_class_token_gets_no_second_one(name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        described(f"{name}?distilled=true", 32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "heads"), [("levit_128s", ("cls", "dist")), ("crossvit_tiny_240", ("1", "2"))])
def test_classifiers_of_other_models(name: str, heads: tuple[str, ...]) -> None:
    facts = described(name, 240)
    assert facts.heads == heads
    model = TimmStudent(create(facts), facts)
    found = model.collect(Batch({"images": torch.rand(1, 3, 240, 240)}, 1), {"logits", *model.taps().keys()})
    for head in heads:
        assert found[f"logits.{head}"].shape == (1, 5)


def test_images_that_a_model_cannot_read_are_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="cannot read images of 28 x 28 pixels"):
        described("convnext_atto", 28)
    with pytest.raises(UsageError, match="no model 'resnet81'"):
        described("resnet81", 32)


SIZES = (28, 32, 96, 224)
READ = {name: [s for s in SIZES if s > 28 or name in EVERY_SIZE] for name in (*EVERY_SIZE, *FROM_32)}
"""The sizes that each model reads."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "size"), [(name, sizes[i % len(sizes)]) for i, (name, sizes) in enumerate(READ.items())]
)
def test_families_of_models(name: str, size: int) -> None:
    """Computed at one size each, in turn: at least twelve models a size."""
    check(described(name, size))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for i, name in enumerate(READ) if i % 5 == 0])
def test_models_have_as_many_taps_at_every_size(name: str) -> None:
    assert {len(described(name, size).features) for size in READ[name]} <= {3, 4}
