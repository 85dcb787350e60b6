"""AdaFace and the combined margin: held to slow plain versions in float64, and in training."""

import math

import pytest
import torch
from reference import adaface, arcface, combined_margin, cosface
from scripts import TINY
from torch.nn import functional as F

from meta import UserError
from models.iefp import IEFP
from models.margin import AdaFace, ArcFace, CombinedMargin, CosFace


def normal(*shape, seed=0, scale=1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def head_of(kind, margin=None, scale=64.0):
    head = kind(5, size=4, scale=scale, margin=margin).double()
    with torch.no_grad():
        head.weight.copy_(normal(5, 4, seed=99))
    return head


@pytest.fixture
def pictures():
    """Features of many lengths, so that some qualities are cut at either end, and labels."""
    lengths = torch.tensor([0.0001, 0.5, 5.0, 20.0, 60.0, 99.0, 400.0], dtype=torch.float64)
    return F.normalize(normal(7, 4, seed=1)) * lengths[:, None], torch.tensor([0, 1, 2, 3, 4, 0, 1])


def same_values_and_gradients(head, plain, features, labels):
    features = features.clone().requires_grad_()
    weights = normal(len(labels), 5, seed=50)
    ours, theirs = head(features, labels), plain(features, head.weight, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad((each * weights).sum(), (features, head.weight)) for each in (ours, theirs)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("margin", [None, (1.0, 0.5, 0.0), (1.35, 0.0, 0.0), (2.0, 1.0, 0.1), (4.0, 0.3, 0.2)])
def test_the_combined_margin_is_the_plain_one(margin, pictures):
    options = {} if margin is None else {"margin": margin}
    same_values_and_gradients(
        head_of(CombinedMargin, margin), lambda *given: combined_margin(*given, **options), *pictures
    )


def test_the_combined_margin_falls_with_the_angle_without_a_step():
    head = head_of(CombinedMargin, (3.0, 0.5, 0.1))
    angles = torch.linspace(0.01, math.pi - 0.01, 4000, dtype=torch.float64)
    values = head.with_margin(angles.cos(), None)
    falls = values[:-1] - values[1:]
    assert (falls >= -1e-12).all() and falls.max() < 0.01


def test_special_cases_of_the_combined_margin_are_cosface_and_arcface(pictures):
    features, labels = pictures
    torch.testing.assert_close(
        head_of(CombinedMargin, (1.0, 0.0, 0.35))(features, labels), cosface(features, normal(5, 4, seed=99), labels),
        rtol=1e-6, atol=1e-4,
    )  # fmt: skip
    near = head_of(CombinedMargin, (1.0, 0.5, 0.0)).weight.detach()[labels] + 0.3 * normal(7, 4, seed=3)
    torch.testing.assert_close(  # all angles below pi - m
        head_of(CombinedMargin, (1.0, 0.5, 0.0))(near, labels), arcface(near, normal(5, 4, seed=99), labels),
        rtol=1e-6, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("margin", [None, 0.0, 0.75])
@pytest.mark.parametrize("statistics", [(20.0, 100.0), (30.0, 5.0)])
def test_adaface_is_the_plain_one(margin, statistics, pictures):
    head = head_of(AdaFace, margin).eval()
    head.length_mean.fill_(statistics[0])
    head.length_deviation.fill_(statistics[1])
    options = ({} if margin is None else {"margin": margin}) | dict(zip(("mean", "deviation"), statistics, strict=True))
    same_values_and_gradients(head, lambda *given: adaface(*given, **options), *pictures)
    assert [head.length_mean.item(), head.length_deviation.item()] == list(statistics)


def test_adafaces_statistics_follow_the_batch_in_training_alone():
    """7a: running <- t * batch + (1 - t) * running with t = 0.01, from 20 and 100, as in the authors' programs."""
    head = head_of(AdaFace)
    assert [head.length_mean.item(), head.length_deviation.item()] == [20, 100]
    features, labels = normal(50, 4, seed=2, scale=8.0), torch.zeros(50, dtype=torch.long)
    lengths = features.norm(dim=1)
    head(features, labels)
    assert head.length_mean.item() == pytest.approx(0.01 * lengths.mean().item() + 0.99 * 20)
    assert head.length_deviation.item() == pytest.approx(0.01 * lengths.std().item() + 0.99 * 100)
    before = head.length_mean.item()
    head(features[:1], labels[:1])  # one picture says nothing of a deviation
    assert head.length_mean.item() == before


def test_the_last_69_batches_make_half_of_adafaces_statistics():
    """7a: a batch's mean counts for 69 steps, not for a fraction of one."""
    head = head_of(AdaFace)
    head.length_mean.fill_(0.0)
    for _ in range(69):
        head.quality(10 * F.normalize(normal(8, 4)))
    assert head.length_mean.item() == pytest.approx(10 * (1 - 0.99**69)) == pytest.approx(5, rel=0.01)


def test_shares_of_a_batch_move_adafaces_statistics_as_the_whole_batch_does():
    """7a: two processes see one picture each, neither of which has a deviation of its own."""
    alone, shared = head_of(AdaFace), head_of(AdaFace)
    features = normal(2, 4, seed=2, scale=30.0)
    whole = alone.quality(features)
    lengths = features.norm(dim=1)
    part = shared.quality(features[1:], gather=lambda own: torch.cat([lengths[:1], own]))
    assert torch.equal(part, whole[1:])
    assert torch.equal(shared.length_mean, alone.length_mean)
    assert torch.equal(shared.length_deviation, alone.length_deviation) and alone.length_deviation != 100


def test_adaface_takes_lengths_that_are_all_equal_for_middling():
    head, labels = head_of(AdaFace), torch.arange(5)
    head.length_mean.fill_(7.0)
    head.length_deviation.fill_(0.0)
    features = (7 * F.normalize(normal(5, 4, seed=6))).requires_grad_()
    loss = head.loss(features, labels)
    assert head.quality(features).abs().max() < 1e-6  # no deviation: nothing to tell pictures apart by
    for gradient in torch.autograd.grad(loss, (features, head.weight)):
        assert gradient.isfinite().all()


def test_adaface_asks_more_of_good_pictures_where_they_are_hard():
    """Far from its identity a long feature has the larger gradient, near it the short one (figure 3 of the paper)."""
    head = head_of(AdaFace, 0.4).eval()
    head.length_mean.fill_(10.0)
    head.length_deviation.fill_(1.0)
    cosine = torch.tensor([0.2, 0.9], dtype=torch.float64).repeat(2).requires_grad_()
    quality = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    (slope,) = torch.autograd.grad(head.with_margin(cosine, quality).sum(), cosine)
    good, poor = slope.view(2, 2)
    assert (good[1] < good[0]) and (poor[1] > poor[0])


@pytest.mark.parametrize("kind", [CombinedMargin, AdaFace])
def test_the_lean_loss_is_the_cross_entropy_of_the_logits(kind, pictures):
    head = head_of(kind, scale=10.0).eval()
    features, labels = pictures
    features = features.clone().requires_grad_()
    options = [
        (loss, *torch.autograd.grad(loss, (features, head.weight)))
        for loss in (head.loss(features, labels), F.cross_entropy(head(features, labels), labels))
    ]
    torch.testing.assert_close(options[0], options[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [CombinedMargin, AdaFace])
@pytest.mark.parametrize("sign", [1, -1])
def test_gradients_are_finite_where_a_feature_is_its_weight(kind, sign):
    head = kind(6, size=6)
    with torch.no_grad():
        head.weight.copy_(torch.eye(6))
    features = (sign * torch.eye(6)).requires_grad_()
    for gradient in torch.autograd.grad(head.loss(features, torch.arange(6)), (features, head.weight)):
        assert gradient.isfinite().all()


def test_the_published_heads_have_no_further_tensors_and_adaface_keeps_its_statistics():
    with torch.device("meta"):
        names = {
            margin: {name for name in IEFP(TINY, 1, 3, margin, margin_value=None).state_dict()
                     if name.startswith("margin_fc.")}
            for margin in ("cosface", "arcface", "combined", "adaface")
        }  # fmt: skip
    assert names["cosface"] == names["arcface"] == names["combined"] == {"margin_fc.weight"}
    assert names["adaface"] - names["cosface"] == {"margin_fc.length_mean", "margin_fc.length_deviation"}
    assert CosFace.default_margin == 0.35 and ArcFace.default_margin == 0.5


@pytest.mark.parametrize("margin", [0.35, (0.9, 0.1, 0.1), (1.0, -0.1, 0.0), (1.0, 0.2)])
def test_a_combined_margin_out_of_range_is_a_users_mistake(margin):
    with pytest.raises(UserError, match="give three numbers"):
        CombinedMargin(3, margin=margin)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--margin", "combined", "--margin-value", 0.3), "--margin-value does nothing with --margin combined"),
        (("--margin-values", 1, 0.3, 0.2), "--margin-values does nothing with --margin cosface"),
        (("--margin", "combined", "--margin-values", 0.5, 0, 0), "give three numbers"),
    ],
)
def test_a_margin_that_does_nothing_is_refused(train_identity, tmp_path, flags, words):
    outcome = train_identity(tmp_path / "run", *flags)
    assert outcome.status == 2 and words in outcome.err
