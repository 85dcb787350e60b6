"""Margin heads: held to the known-good numbers and to slow plain versions in float64."""

import math

import numpy as np
import pytest
import torch
from reference import adaface, arcface, combined_margin, cosface
from scripts import ROOT, TINY
from torch.nn import functional as F

from meta import UserError
from models.iefp import IEFP
from models.margin import MARGINS

PLAIN = {"cosface": cosface, "arcface": arcface, "combined": combined_margin, "adaface": adaface}


def normal(*shape, seed=0, scale=1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def head_of(name, margin=None, scale=64.0, num_identities=5, size=4):
    head = MARGINS[name](num_identities, size=size, scale=scale, margin=margin).double()
    with torch.no_grad():
        head.weight.copy_(normal(num_identities, size, seed=99))
    return head


@pytest.fixture
def pictures():
    """Features of many lengths, so that some qualities are cut at either end, and labels."""
    lengths = torch.tensor([0.0001, 0.5, 5.0, 20.0, 60.0, 99.0, 400.0], dtype=torch.float64)
    return F.normalize(normal(7, 4, seed=1)) * lengths[:, None], torch.tensor([0, 1, 2, 3, 4, 0, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["cosface", "arcface"])
def test_logits_are_the_known_good_ones(name, dtype):
    with np.load(ROOT / "tests" / "golden" / "margins.npz", allow_pickle=False) as file:
        arrays = {key: file[f"{name}/{key}"] for key in ("x", "y", "weight", "logits")}
    head = MARGINS[name](20).to(dtype)
    head.load_state_dict({"weight": torch.from_numpy(arrays["weight"])})
    logits = head(torch.from_numpy(arrays["x"]).to(dtype), torch.from_numpy(arrays["y"])).detach().numpy()
    # The numbers are float32: a logit near 0 carries the rounding of its cosine, one float32 step times 64.
    np.testing.assert_allclose(logits, arrays["logits"], rtol=1e-5, atol=64 * 2**-23)


OPTIONS = [
    *(("cosface", {"scale": scale, **margin}) for scale, margin in ((64.0, {}), (30.0, {"margin": 0.2}))),
    *(("arcface", {"scale": scale, **margin}) for scale, margin in ((64.0, {}), (30.0, {"margin": 0.2}))),
    ("arcface", {"scale": 1.0, "margin": 0.0}),
    *(("combined", margin) for margin in ({}, {"margin": (1.35, 0.0, 0.0)}, {"margin": (2.0, 1.0, 0.1)})),
    ("combined", {"margin": (4.0, 0.3, 0.2)}),
    *(("adaface", {"mean": 20.0, "deviation": 100.0, **margin}) for margin in ({}, {"margin": 0.0})),
    ("adaface", {"mean": 30.0, "deviation": 5.0, "margin": 0.75}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_logits_and_gradients_are_the_plain_ones_and_inputs_are_left_alone(name, options, pictures):
    head = head_of(name, options.get("margin"), options.get("scale", 64.0)).eval()
    if name == "adaface":
        head.length_mean.fill_(options["mean"])
        head.length_deviation.fill_(options["deviation"])
    (features, labels), before = pictures, state_of(head)
    given = features.clone().requires_grad_()
    logits, plain = head(given, labels), PLAIN[name](given, head.weight, labels, **options)
    torch.testing.assert_close(logits, plain, rtol=1e-10, atol=1e-10)
    weights = normal(7, 5, seed=50)
    gradients = [torch.autograd.grad((each * weights).sum(), (given, head.weight)) for each in (logits, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)
    assert torch.equal(given, features) and all(torch.equal(*pair) for pair in zip(before, state_of(head), strict=True))


def state_of(head) -> list[torch.Tensor]:
    return [value.clone() for value in head.state_dict().values()]


@pytest.mark.parametrize("name", ["cosface", "arcface"])
def test_logits_are_the_plain_ones_from_angle_0_to_pi(name):
    """Both ends, where the root in the sine is steep, and both sides of ArcFace's change at pi - m."""
    head, change = head_of(name, num_identities=2, size=3), math.pi - 0.5
    angles = torch.tensor([1e-4, 1e-2, 1.0, change - 1e-6, change + 1e-6, math.pi - 1e-2, math.pi - 1e-4]).double()
    direction = F.normalize(head.weight.detach()[:1])
    across = F.normalize(normal(1, 3, seed=4) - (normal(1, 3, seed=4) * direction).sum() * direction)
    features = 2.5 * (angles.cos()[:, None] * direction + angles.sin()[:, None] * across)
    labels = torch.zeros(len(angles), dtype=torch.long)
    torch.testing.assert_close(head(features, labels), PLAIN[name](features, head.weight, labels), rtol=0, atol=1e-8)
    # At the ends themselves the sine is held at 1e-6 for the sake of its gradient.
    ends = torch.cat([3 * direction, -3 * direction])
    plain_ends = PLAIN[name](ends, head.weight, labels[:2])
    torch.testing.assert_close(head(ends, labels[:2]), plain_ends, rtol=0, atol=64 * 1e-6)


@pytest.mark.parametrize("name", ["cosface", "arcface"])
def test_gradients_are_those_of_small_differences(name):
    head, labels = head_of(name, num_identities=4, size=3), torch.tensor([0, 3, 1])

    def logits(features, weight):
        return torch.func.functional_call(head, {"weight": weight}, (features, labels))

    inputs = normal(3, 3, seed=1).requires_grad_(), normal(4, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(logits, inputs)


def test_arcface_takes_the_straight_line_beyond_pi_minus_margin():
    head = head_of("arcface")
    logit = head(-head.weight.detach()[:1], torch.tensor([0]))[0, 0].item()
    assert logit == pytest.approx(64 * (-1 - 0.5 * math.sin(math.pi - 0.5)))
    assert logit < -64  # cos(theta + m) would turn back up here


def test_special_cases_of_the_combined_margin_are_cosface_and_arcface(pictures):
    (features, labels), weight = pictures, normal(5, 4, seed=99)
    found = head_of("combined", (1.0, 0.0, 0.35))(features, labels)
    torch.testing.assert_close(found, cosface(features, weight, labels), rtol=1e-6, atol=1e-4)
    near = weight[labels] + 0.3 * normal(7, 4, seed=3)  # all angles below pi - m
    found = head_of("combined", (1.0, 0.5, 0.0))(near, labels)
    torch.testing.assert_close(found, arcface(near, weight, labels), rtol=1e-6, atol=1e-4)


def test_the_combined_margin_falls_with_the_angle_without_a_step():
    head = head_of("combined", (3.0, 0.5, 0.1))
    angles = torch.linspace(0.01, math.pi - 0.01, 4000, dtype=torch.float64)
    values = head.with_margin(angles.cos(), None)
    falls = values[:-1] - values[1:]
    assert (falls >= -1e-12).all() and falls.max() < 0.01


@pytest.mark.parametrize("name", MARGINS)
def test_the_lean_loss_is_the_cross_entropy_of_the_logits(name, pictures):
    """In float64, also where a label comes twice."""
    head, (features, labels) = head_of(name, scale=10.0).eval(), pictures
    features = features.clone().requires_grad_()
    options = [
        (loss, *torch.autograd.grad(3 * loss, (features, head.weight)))
        for loss in (head.loss(features, labels), F.cross_entropy(head(features, labels), labels))
    ]
    torch.testing.assert_close(options[0], options[1], rtol=1e-12, atol=1e-14)


def test_the_lean_loss_keeps_one_matrix_of_batch_by_identities():
    head, features = MARGINS["cosface"](3001), torch.randn(7, 512, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        head.loss(features, torch.arange(7))
    assert sum(size == 7 * 3001 for size in kept.values()) == 1
    assert all(size <= 3001 * 512 for size in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("directions", [normal(6, 8), torch.eye(6, 8)], ids=["random", "axes"])
@pytest.mark.parametrize("name", MARGINS)
def test_gradients_are_finite_where_a_feature_is_its_weight(name, directions, sign, dtype):
    """A random direction has a cosine a rounding away from 1, an axis has 1 exactly."""
    head = MARGINS[name](6, size=8).to(dtype)
    with torch.no_grad():
        head.weight.copy_(directions)
    features = (sign * head.weight.detach()).requires_grad_()
    for loss in (
        head.loss(features, torch.arange(6)),
        F.cross_entropy(head(features, torch.arange(6)), torch.arange(6)),
    ):
        for gradient in torch.autograd.grad(loss, (features, head.weight)):
            assert gradient.isfinite().all()


# -------------------------------------------------------------------------------------------------------- AdaFace


def test_adafaces_statistics_follow_the_batch_in_training_alone():
    """7a: running <- t * batch + (1 - t) * running with t = 0.01, from 20 and 100, as in the authors' programs."""
    head = head_of("adaface")
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
    head = head_of("adaface")
    head.length_mean.fill_(0.0)
    for _ in range(69):
        head.quality(10 * F.normalize(normal(8, 4)))
    assert head.length_mean.item() == pytest.approx(10 * (1 - 0.99**69)) == pytest.approx(5, rel=0.01)


def test_shares_of_a_batch_move_adafaces_statistics_as_the_whole_batch_does():
    """7a: two processes see one picture each, neither of which has a deviation of its own."""
    alone, shared = head_of("adaface"), head_of("adaface")
    features = normal(2, 4, seed=2, scale=30.0)
    whole = alone.quality(features)
    lengths = features.norm(dim=1)
    part = shared.quality(features[1:], gather=lambda own: torch.cat([lengths[:1], own]))
    assert torch.equal(part, whole[1:])
    assert torch.equal(shared.length_mean, alone.length_mean)
    assert torch.equal(shared.length_deviation, alone.length_deviation) and alone.length_deviation != 100


def test_adaface_takes_lengths_that_are_all_equal_for_middling():
    head, labels = head_of("adaface"), torch.arange(5)
    head.length_mean.fill_(7.0)
    head.length_deviation.fill_(0.0)
    features = (7 * F.normalize(normal(5, 4, seed=6))).requires_grad_()
    loss = head.loss(features, labels)
    assert head.quality(features).abs().max() < 1e-6  # no deviation: nothing distinguishes pictures
    for gradient in torch.autograd.grad(loss, (features, head.weight)):
        assert gradient.isfinite().all()


def test_adaface_asks_more_of_good_pictures_where_they_are_hard():
    """Far from its identity a long feature has the larger gradient, near it the short one (figure 3 of the paper)."""
    head = head_of("adaface", 0.4).eval()
    head.length_mean.fill_(10.0)
    head.length_deviation.fill_(1.0)
    cosine = torch.tensor([0.2, 0.9], dtype=torch.float64).repeat(2).requires_grad_()
    quality = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    (slope,) = torch.autograd.grad(head.with_margin(cosine, quality).sum(), cosine)
    good, poor = slope.view(2, 2)
    assert (good[1] < good[0]) and (poor[1] > poor[0])


def test_the_published_heads_have_no_further_tensors_and_adaface_keeps_its_statistics():
    with torch.device("meta"):
        names = {
            margin: {name for name in IEFP(TINY, 1, 3, margin, margin_value=None).state_dict()
                     if name.startswith("margin_fc.")}
            for margin in ("cosface", "arcface", "combined", "adaface")
        }  # fmt: skip
    assert names["cosface"] == names["arcface"] == names["combined"] == {"margin_fc.weight"}
    assert names["adaface"] - names["cosface"] == {"margin_fc.length_mean", "margin_fc.length_deviation"}


@pytest.mark.parametrize("margin", [0.35, (0.9, 0.1, 0.1), (1.0, -0.1, 0.0), (1.0, 0.2)])
def test_a_combined_margin_out_of_range_is_a_users_mistake(margin):
    with pytest.raises(UserError, match="give three numbers"):
        MARGINS["combined"](3, margin=margin)
