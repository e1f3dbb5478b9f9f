"""Closed forms: what every formula gives for values that can be computed by hand (F1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.matching.objectives.dense_values import objective
from xarch import Batch, MatchContext, PlanError, Tap

STUDENT, TEACHER = torch.tensor([[1.0, 0.5, 0.2, -0.3]]), torch.tensor([[2.0, 1.0, 0.0, -1.0]])
LABEL = torch.tensor([0])
TABLE = [
    (1.0, 1.075011, 1.075011),
    (1.2, 1.050917, 1.220239),
    (1.4, 1.100359, 1.380647),
    (1.5, 1.145969, 1.467033),
    (2.0, 1.529057, 1.969665),
]
"""γ, OFA's loss in its code, and as in the paper without the cross-entropy with the label."""


def logits(classes: int = 4) -> Tap:
    return Tap("logits", "logits", "BK", {"K": classes})


def feature(width: int) -> Tap:
    return Tap("f", "feature", "BD", {"D": width})


def batch(samples: int) -> Batch:
    return Batch({"x": torch.zeros(samples, 1)}, samples)


def made(name: str, student: Any, teacher: Any, *, data: Mapping[str, Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    return objective(name, student, teacher, MatchContext("m", steps=10, data=data or {}), **options).eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("gamma", "code", "paper"), TABLE)
def test_ofa_gives_the_table(gamma: float, code: float, paper: float) -> None:
    for variant, wanted in (("code", code), ("paper", paper)):
        found = made("ofa", logits(), logits(), gamma=gamma, variant=variant)
        assert float(found(STUDENT, TEACHER, batch(1), labels=LABEL)) == pytest.approx(wanted, abs=1e-5)


def test_ofa_with_gamma_one_is_the_divergence_and_its_gradient_the_difference() -> None:
    own = STUDENT.clone().requires_grad_()
    loss = made("ofa", logits(), logits())(own, TEACHER, batch(1), labels=LABEL)
    assert float(loss.detach()) == pytest.approx(0.127474 + 0.947537, abs=1e-5)
    loss.sum().backward()
    torch.testing.assert_close(own.grad, STUDENT.softmax(-1) - TEACHER.softmax(-1))


def test_ofa_with_mixed_labels_enhances_the_largest_share_or_all_of_them() -> None:
    mixed = torch.tensor([[0.7, 0.3, 0.0, 0.0]])
    hard = made("ofa", logits(), logits(), gamma=1.4)
    torch.testing.assert_close(
        hard(STUDENT, TEACHER, batch(1), labels=mixed), hard(STUDENT, TEACHER, batch(1), labels=LABEL)
    )
    soft = made("ofa", logits(), logits(), gamma=1.4, target="soft")
    p, log_q = TEACHER.softmax(-1), F.log_softmax(STUDENT, -1)
    wanted = -(((p + mixed) ** 1.4 - mixed) * log_q).sum(-1)
    torch.testing.assert_close(soft(STUDENT, TEACHER, batch(1), labels=mixed), wanted)


def test_ofa_finds_gamma_from_how_sure_the_teacher_is() -> None:
    found = made("ofa", logits(), logits(), gamma="auto").train()
    assert float(found.gamma()) == 1.0
    found(STUDENT, TEACHER, batch(1), labels=LABEL)
    found.after_step()
    assert float(found.gamma()) == pytest.approx(1 + 0.5 * (1 - float(TEACHER.softmax(-1)[0, 0])), abs=1e-6)
    assert found.monitor()["gamma"] == pytest.approx(float(found.gamma()))


def test_dkd_splits_the_divergence() -> None:
    """KL(p ‖ q) = TCKD + (1 − p_y) NCKD."""
    own, other, label = random(6, 4), random(6, 4, seed=1), torch.tensor([0, 1, 2, 3, 0, 1])
    parts = [
        made("dkd", logits(), logits(), alpha=a, beta=1 - a, temperature=1.0)(own, other, batch(6), labels=label)
        for a in (1.0, 0.0)
    ]
    p_y = other.softmax(-1).gather(1, label[:, None])[:, 0]
    whole = made("kl", logits(), logits())(own, other, batch(6))
    torch.testing.assert_close(parts[0] + (1 - p_y) * parts[1], whole, atol=1e-5, rtol=0)


def test_nkd_is_two_cross_entropies() -> None:
    p, q = TEACHER.softmax(-1)[0], STUDENT.softmax(-1)[0]
    others = -(p[1:] / p[1:].sum() * (q[1:] / q[1:].sum()).log()).sum()
    got = made("nkd", logits(), logits())(STUDENT, TEACHER, batch(1), labels=LABEL)
    assert float(got) == pytest.approx(float(-p[0] * q[0].log() + 1.5 * others), abs=1e-6)


def test_wsld_ignores_samples_on_which_the_student_is_much_better() -> None:
    found = made("wsld", logits(), logits())
    better, worse = torch.tensor([[9.0, 0, 0, 0]]), torch.tensor([[-9.0, 0, 0, 0]])
    weak = torch.tensor([[-3.0, 0, 0, 0]])
    soft = [-(weak / 2).softmax(-1).mul(F.log_softmax(x / 2, -1)).sum() * 4 for x in (better, worse)]
    share = [1 - math.exp(-float(F.cross_entropy(x, LABEL) / F.cross_entropy(weak, LABEL))) for x in (better, worse)]
    for x, s, w in zip((better, worse), soft, share, strict=True):
        assert float(found(x, weak, batch(1), labels=LABEL)) == pytest.approx(float(s) * w, rel=1e-3)
    assert share[0] < 0.01 < share[1]


def test_standardised_logits_know_neither_scale_nor_offset() -> None:
    own = random(3, 4)
    torch.testing.assert_close(
        made("logit-std", logits(), logits())(3 * own + 2, own, batch(3)), torch.zeros(3, dtype=torch.float64)
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_jensen_shannon_divergence_is_bounded(share: float) -> None:
    found = made("kl", logits(), logits(), direction="js", share=share)
    loss = found(random(50, 4) * 9, random(50, 4, seed=1) * 9, batch(50))
    most = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert bool((loss >= 0).all())
    assert float(loss.max()) <= most + 1e-9
    assert float(found(STUDENT, STUDENT, batch(1))) == pytest.approx(0, abs=1e-6)


def test_dist_is_zero_for_equal_sides() -> None:
    own = random(6, 4)
    assert float(made("dist", logits(), logits())(own, own, batch(6)).abs().max()) < 1e-6


def test_taid_moves_its_target_to_the_teacher_and_never_back() -> None:
    found, seen = made("taid", logits(), logits(), rate=0.05).train(), []
    for step in range(10):
        found(STUDENT + step % 3, TEACHER, batch(1))
        found.after_step()
        found.step_loss.zero_()  # as the engine does
        seen.append(float(found.t))
    assert seen[0] == pytest.approx(0.4)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert float(found(STUDENT, TEACHER, batch(1))) == pytest.approx(
        float(-(TEACHER.softmax(-1) * F.log_softmax(STUDENT, -1)).sum()), abs=1e-6
    )


def test_taid_follows_the_update_of_the_authors() -> None:
    found, losses = made("taid", logits(), logits(), rate=0.3, momentum=0.5, start=0.1).train(), [2.0, 1.5, 1.4]
    t, m, previous = 0.1, 0.0, None
    for step, loss in enumerate(losses, 1):
        found.step_loss.copy_(torch.tensor([loss * 3, 3.0]))
        found.t.fill_(0.1) if step == 1 else None
        found.after_step()
        if previous is not None:
            m = 0.5 * m + 0.5 * (previous - loss) / previous
            t = min(1.0, max(0.1 + 0.9 * step / 10, t + 0.3 / (1 + math.exp(-m)) * (1 - t)))
        previous = loss
        assert float(found.t) == pytest.approx(t, abs=1e-6)


def test_nd_is_zero_only_along_the_class_and_long_enough() -> None:
    found = made("nd", feature(3), feature(3), data={"classes": 2})
    found.all_sum.copy_(torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]]))
    found.all_count.fill_(1.0)
    other = torch.tensor([[0.0, 1.0, 1.0]]).expand(4, -1)
    along = math.sqrt(2)
    own = torch.tensor([[0.0, along, 0.0], [0.0, 5.0, 0.0], [0.0, 0.5, 0.0], [1.0, 5.0, 0.0]])
    loss = found(own, other, batch(4), labels=torch.zeros(4, dtype=torch.long))
    wanted = [0.0, 0.0, 1 - 0.5 / along, 1 - 5 / math.sqrt(26)]
    torch.testing.assert_close(loss, torch.tensor(wanted), atol=1e-6, rtol=0)


def test_nd_learns_the_mean_of_every_class() -> None:
    found = made("nd", feature(2), feature(2), data={"classes": 2}).train()
    other = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 0.0]])
    found(other, other, batch(3), labels=torch.tensor([0, 1, 0]))
    found.after_step()
    torch.testing.assert_close(found.all_sum / found.all_count[:, None], torch.tensor([[2.5, 0.0], [0.0, 1.0]]))


def plan(own: Tensor, other: Tensor, **options: Any) -> Tensor:
    """The transport plan, from the gradient of the loss that its rows give: here recomputed as the docstring says."""
    cost = (own.softmax(-1)[:, None] - other.softmax(-1)).abs().sum(-1)
    kernel = (-cost / options["entropy"]).exp()
    for _ in range(options["iterations"]):
        kernel = kernel / kernel.sum(1, keepdim=True)
        kernel = kernel / kernel.sum(0, keepdim=True)
    return kernel


def test_sinkd_transports_as_its_formula_says() -> None:
    own, other = random(5, 4), random(5, 4, seed=1)
    got = made("sinkd", logits(), logits(), temperature=1.0, entropy=0.1)(own, other, batch(5))
    moved = plan(own, other, entropy=0.1, iterations=20)
    cost = (own.softmax(-1)[:, None] - other.softmax(-1)).abs().sum(-1)
    torch.testing.assert_close(got, (moved * cost).sum(1))
    assert float((moved.sum(0) - 1).abs().max()) < 1e-9
    assert float((moved.sum(1) - 1).abs().max()) < 0.05
    exact = plan(own, other, entropy=0.1, iterations=200)
    assert float((exact.sum(1) - 1).abs().max()) < 1e-5


def test_sinkd_carries_equal_batches_nowhere() -> None:
    own = random(5, 4)
    loss = made("sinkd", logits(), logits(), entropy=1e-3, temperature=1.0)(own, own, batch(5))
    assert float(loss.max()) < 1e-9


def test_rkd_measures_distances_over_their_mean_and_angles() -> None:
    own, other = random(5, 3), random(5, 6, seed=1)
    found = made("rkd", feature(3), feature(6), distance=1.0, angle=0.0)
    sides = []
    for x in (own, other):
        d = torch.cdist(x, x)
        sides.append(d / d[d > 0].mean())
    got = found(own, other, batch(5)).mean()
    torch.testing.assert_close(got, F.huber_loss(*sides), atol=1e-6, rtol=0)
    angle = made("rkd", feature(3), feature(6), distance=0.0, angle=1.0)
    corners = []
    for x in (own, other):
        e = F.normalize(x[None] - x[:, None], dim=2)
        corners.append(torch.einsum("ijd,ikd->ijk", e, e))
    torch.testing.assert_close(angle(own, other, batch(5)).mean(), F.huber_loss(*corners), atol=1e-6, rtol=0)
    same = made("rkd", feature(3), feature(3))
    turn = torch.linalg.qr(random(3, 3, seed=2))[0]
    assert float(same(own @ turn * 7, own, batch(5)).max()) < 1e-9


def test_similarities_do_not_change_when_a_side_is_rotated() -> None:
    own = random(6, 4)
    turned = own @ torch.linalg.qr(random(4, 4, seed=3))[0]
    for name in ("sp", "pkt", "cka"):
        assert float(made(name, feature(4), feature(4))(turned, own, batch(6)).abs().max()) < 1e-6, name
    assert float(made("cka", feature(4), feature(4))(3 * turned + 5, own, batch(6)).max()) < 1e-9


def test_cka_is_that_of_the_covariances() -> None:
    own, other = random(8, 3), random(8, 5, seed=1)
    x, y = own - own.mean(0), other - other.mean(0)
    wanted = 1 - (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    torch.testing.assert_close(made("cka", feature(3), feature(5))(own, other, batch(8)).mean(), wanted)


def test_a_masked_sample_is_as_if_it_were_not_there() -> None:
    own, other, mask = random(6, 3), random(6, 5, seed=1), torch.tensor([1.0, 0, 1, 1, 0, 1])
    kept = mask > 0
    for name in ("rkd", "sp", "pkt", "cka"):
        found = made(name, feature(3), feature(5))
        whole = found(own, other, batch(6), mask=mask).sum() / found.weight(batch(6), mask=mask).sum()
        few = found(own[kept], other[kept], batch(4))
        torch.testing.assert_close(whole, few.mean(), msg=lambda m, name=name: f"{name}: {m}")


def test_attention_transfer_compares_where_features_are_active() -> None:
    own, other = torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 2, 2)
    own[0, :, 0, 0], other[0, :, 0, 0] = 3.0, 1.0
    at = made("at", Tap("a", "f", "BCHW", {"C": 2}), Tap("b", "f", "BCHW", {"C": 3}), beta=1.0)
    assert float(at(own, other, batch(1))) == pytest.approx(0.0)
    moved = other.flip(-1)
    assert float(at(own, moved, batch(1))) == pytest.approx(2 / 4)


def test_vid_starts_at_its_variance() -> None:
    vid = made("vid", feature(3), feature(2))
    with torch.no_grad():
        for p in vid.mean.parameters():
            p.zero_()
    other = torch.tensor([[1.0, 3.0]])
    assert float(vid(torch.zeros(1, 3), other, batch(1))) == pytest.approx(
        0.5 * ((1 + 9) / 2 / 5 + math.log(5)), abs=1e-5
    )


def test_ldam_lowers_the_logit_of_a_label_by_its_margin() -> None:
    counts, label = [160, 10, 1, 10], torch.tensor([0, 2])
    student = random(2, 4)
    facts = {"classes": 4, "class_counts": counts}
    found = made("ldam", logits(), Tap("labels", "batch", "B"), data=facts, margin=0.5, scale=3.0)
    lowered = student.clone()
    lowered[0, 0] -= 3 * 0.5 * 160**-0.25
    lowered[1, 2] -= 3 * 0.5
    want = F.cross_entropy(lowered, label, reduction="none")
    torch.testing.assert_close(found(student, label, batch(2)), want)
    mixed = made("ldam", logits(), Tap("labels", "batch", "BK", {"K": 4}), data=facts, margin=0.5, scale=3.0)
    torch.testing.assert_close(mixed(student, F.one_hot(label, 4).float(), batch(2)), want)
    with pytest.raises(PlanError, match="class_counts"):
        made("ldam", logits(), Tap("labels", "batch", "B"), data={"classes": 4, "class_counts": [3, 0, 1, 2]})


def test_logits_are_shifted_by_the_frequency_of_classes() -> None:
    counts, label = [80, 15, 5], torch.tensor([0, 2])
    student = random(2, 3)
    found = made(
        "logit-adjustment", logits(3), Tap("labels", "batch", "B"), data={"class_counts": counts}, strength=2.5
    )
    want = F.cross_entropy(student + 2.5 * torch.tensor([0.8, 0.15, 0.05]).log(), label, reduction="none")
    torch.testing.assert_close(found(student, label, batch(2)), want)
    with pytest.raises(PlanError, match="class_counts"):
        made("logit-adjustment", logits(3), Tap("labels", "batch", "B"), data={"class_counts": [3, 0, 1]})


def test_views_agree_only_where_the_other_one_is_right() -> None:
    shift = torch.tensor([0.8, 0.15, 0.05]).log()
    student, other = random(2, 3), torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    label = torch.tensor([0, 1])
    found = made("consistency", logits(3), logits(3), data={"class_counts": [80, 15, 5]}, strength=-0.5)
    p, q = ((z - 0.5 * shift).log_softmax(-1) for z in (other, student))
    got = found(student, other, batch(2), labels=label)
    torch.testing.assert_close(got, torch.stack([(p[0].exp() * (p[0] - q[0])).sum(), torch.zeros(())]))
    far = made("consistency", logits(3), logits(3), data={"class_counts": [80, 15, 5]}, strength=-2.5)
    assert float(far(student, other, batch(2), labels=torch.tensor([0, 0])).abs().sum()) == 0, "the shift decides too"


def test_margins_do_not_know_an_offset() -> None:
    found = made("margin-mse", logits(), logits())
    assert float(found(TEACHER + 5, TEACHER, batch(1), labels=LABEL)) == pytest.approx(0.0, abs=1e-10)
    own, other = torch.tensor([[3.0, 1.0, 1.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    got = made("margin-mse", logits(3), logits(3))(own, other, batch(1))
    assert float(got) == pytest.approx(((2 - 1) ** 2 + (2 - 2) ** 2) / 2)


def test_ferkd_chooses_targets_by_how_sure_the_teacher_is() -> None:
    found = made("ferkd", logits(), logits(), low=0.3, middle=0.6, high=0.9)
    unsure, middling, sure = torch.zeros(4), torch.tensor([1.0, 0, 0, 0]), torch.tensor([2.2, 0, 0, 0])
    other = torch.stack([unsure, middling, sure, sure * 3])
    own = STUDENT.expand(4, -1)
    loss = found(own, other, batch(4), labels=torch.full((4,), 1))
    log_q = F.log_softmax(STUDENT[0], -1)
    smooth = torch.full((4,), 0.1 / 3)
    smooth[1] = 0.9
    wanted = [0.0, -(smooth * log_q).sum(), -(sure.softmax(-1) * log_q).sum(), -log_q[1]]
    torch.testing.assert_close(loss, torch.tensor([float(x) for x in wanted]))


def test_mi_alpha_is_infonce_at_one_and_bounded_by_the_batch() -> None:
    own, other = random(6, 3), random(6, 3, seed=1)
    found = made("mi-alpha", feature(3), feature(3), alpha=1.0).double()
    score = found.own(own) @ found.other(other).T / math.sqrt(128)
    wanted = -(score.diagonal() - score.logsumexp(0) + math.log(6)).mean()
    torch.testing.assert_close(found(own, other, batch(6)).mean(), wanted)
    assert float(wanted) >= -math.log(6)


def test_minilm_is_the_divergence_of_softmaxed_similarities() -> None:
    own, other = random(2, 4, 6), random(2, 4, 6, seed=1)
    tap = Tap("v", "values", "BLD", {"D": 6})
    got = made("minilm", tap, tap)(own, other, batch(2))
    assert objective("minilm", tap, tap, heads=4).heads == 3
    p, q = ((x.unflatten(-1, (6, 1)).transpose(1, 2)) for x in (other, own))
    p, q = ((x @ x.transpose(2, 3)).softmax(-1) for x in (p, q))
    torch.testing.assert_close(got, (p * (p / q).log()).sum(-1).mean((1, 2)))


def test_crd_fills_its_banks_and_contrasts_a_sample_with_other_classes() -> None:
    data = {"classes": 2, "indices": 4}
    found = made("crd", feature(3), feature(3), data=data, width=128, negatives=4).train()
    own, other = random(2, 3).float(), random(2, 3, seed=1).float()
    before = found.banks.own.clone()
    more = {"index": torch.tensor([1, 2]), "labels": torch.tensor([0, 1])}
    found(own, other, batch(2), **more)
    found.after_step()
    assert found.banks.classes.tolist() == [-1, 0, 1, -1]
    assert bool((found.banks.own[[0, 3]] == before[[0, 3]]).all())
    new = F.normalize(torch.lerp(F.normalize(found.heads[0](own), dim=1), before[[1, 2]], 0.5), dim=1)
    torch.testing.assert_close(found.banks.own[[1, 2]], new)
    assert bool(found.banks.measured)
    again = made("crd", feature(3), feature(3), data=data, width=128, negatives=4)
    again.load_state_dict(found.state_dict())
    torch.testing.assert_close(
        again(own, other, batch(2), **more), found.eval()(own, other, batch(2), **more), rtol=0, atol=0
    )


def test_mgd_masks_places_in_training_only() -> None:
    tap = Tap("f", "feature", "BCHW", {"C": 3, "H": 4, "W": 4})
    found, value = made("mgd", tap, tap), random(2, 3, 4, 4).float()
    wanted = 7e-5 * (value - found.generate(value)).square().sum((1, 2, 3))
    torch.testing.assert_close(found(value, value, batch(2)), wanted)
    found.train()
    assert not torch.equal(found(value, value, batch(2)), found(value, value, batch(2)))


def test_reversed_gradients_train_the_adversary_and_push_the_student_the_other_way() -> None:
    wide = logits(16)
    found, own = made("discriminator", wide, wide), random(3, 16).float().requires_grad_()
    found(own, random(3, 16, seed=1).float(), batch(3)).sum().backward()
    plain = made("discriminator", wide, wide, reverse=-1.0)
    other = own.detach().clone().requires_grad_()
    plain(other, random(3, 16, seed=1).float(), batch(3)).sum().backward()
    assert bool(own.grad.any())
    torch.testing.assert_close(own.grad, -other.grad)
    torch.testing.assert_close(found.net[0].weight.grad, plain.net[0].weight.grad)


def test_a_fixed_band_keeps_the_likeliest_classes() -> None:
    found = made("dac-kl", logits(), logits(), band="fixed", mass=0.8)
    p, q = TEACHER.softmax(-1)[0, :2], STUDENT.softmax(-1)[0, :2]
    p, q = p / p.sum(), q / q.sum()
    assert float(found(STUDENT, TEACHER, batch(1))) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse", "js"])
def test_divergences_stay_finite_where_a_softmax_is_not(direction: str) -> None:
    own = torch.tensor([[200.0, 0.0, -200.0, 0.0]], requires_grad=True)
    loss = made("kl", logits(), logits(), direction=direction)(own, -own.detach(), batch(1))
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(own.grad).all())


def test_ltkd_takes_the_preference_for_the_head_out_of_the_groups() -> None:
    found = made("ltkd", logits(), logits(), data={"class_counts": [1, 9, 8, 2]}, groups=2).double()
    head = torch.tensor([False, True, True, False])
    own, other = random(3, 4), random(3, 4, seed=1)
    p, q = other.softmax(-1), own.softmax(-1)
    mass = torch.stack([p[:, head].sum(1), p[:, ~head].sum(1)], 1)
    student = torch.stack([q[:, head].sum(1), q[:, ~head].sum(1)], 1)

    def within(part: Tensor) -> Tensor:
        a, b = (x[:, part] / x[:, part].sum(1, keepdim=True) for x in (p, q))
        return (a * (a / b).log()).sum(1)

    across = (mass * (mass / student).log()).sum(1)
    torch.testing.assert_close(found(own, other, batch(3)), across + within(head) + within(~head))
    whole = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(across + mass[:, 0] * within(head) + mass[:, 1] * within(~head), whole)
    found.mass.copy_(torch.tensor([3.0, 1.0]))
    fair = mass / torch.tensor([0.75, 0.25])
    fair = fair / fair.sum(1, keepdim=True)
    moved = (fair * (fair / student).log()).sum(1) + within(head) + within(~head)
    torch.testing.assert_close(found(own, other, batch(3)), moved)
