"""Networks, estimator and margin heads agree with the known-good numbers and with slow plain versions."""

import inspect
import itertools
import json
import math

import numpy as np
import pytest
import reference
import torch
from golden_weights import fill
from scripts import ROOT, TINY
from torch import nn
from torch.nn import functional as F

from meta import UserError
from models.club import CLUB, SampledCLUB
from models.iefp import IEFP
from models.iresnet import BACKBONES, IResNet, set_batchnorm_momentum
from models.margin import MARGINS, ArcFace, CosFace
from models.purification import PURIFICATION_VARIANTS, PurificationUnit, parse_purification
from models.weights import age_file_tensors

GOLDEN = ROOT / "tests" / "golden"
RELATIVE = 1e-6
PLAIN = {"cosface": reference.cosface, "arcface": reference.arcface}


def golden_arrays(name):
    with np.load(GOLDEN / name, allow_pickle=False) as arrays:
        return dict(arrays)


def draw(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draws every parameter and statistic, in double, so that no term of a formula hides behind a 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in module.double().state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2, generator=generator)
        elif value.is_floating_point():
            value.normal_(generator=generator)
    return module


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def faces(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.rand(count, 3, 112, 112, generator=torch.Generator().manual_seed(5)) * 2 - 1).to(dtype)


def state_copy(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def batchnorms(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]


# --------------------------------------------------------------------------------------------------- known-good numbers


@pytest.mark.parametrize(("backbone", "purification"), [("iresnet18", 2), ("iresnet50", 1)])
def test_forward_passes_are_the_known_good_ones(backbone, purification):
    """With scale 0 too, whose features are what goes into the unit."""
    pixels = np.random.RandomState(0).uniform(-1, 1, (4, 3, 112, 112)).astype(np.float32)
    images, inner = torch.from_numpy(pixels).double(), []
    with torch.device("meta"):
        model = IEFP(backbone, purification, 10)
    model = fill(model.to_empty(device="cpu").double()).eval()
    for branch in (model.backbone_id, model.backbone_ae):
        branch.features.register_forward_hook(lambda module, given, output: inner.append(output))
    with torch.no_grad():
        outer = model.identity_features(images), model.age_features(images)
        known_good(f"{backbone}/purification{purification}/", model, *outer)
        if backbone == "iresnet18":
            known_good("iresnet18/purification0/", model, *inner)


def known_good(prefix: str, model: IEFP, identity: torch.Tensor, age: torch.Tensor) -> None:
    expected = {key[len(prefix) :]: value for key, value in golden_arrays("forward.npz").items() if prefix in key}
    found = {
        "embedding": F.normalize(identity),
        "raw": identity,
        "age_embedding": age,
        "age_logits": model.age_logits(age),
        "mi": model.clubmi.mutual_information(age, identity, torch.tensor([3, 0, 1, 2])),
        "loglik": model.clubmi.log_likelihood(age, identity),
    }
    assert set(found) == set(expected)
    for name, value in found.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=RELATIVE, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["cosface", "arcface"])
def test_margin_logits_are_the_known_good_ones(name, dtype):
    arrays = {key: torch.from_numpy(golden_arrays("margins.npz")[f"{name}/{key}"]) for key in ("x", "y", "weight")}
    head = MARGINS[name](20).to(dtype)
    head.load_state_dict({"weight": arrays["weight"]})
    logits = head(arrays["x"].to(dtype), arrays["y"]).detach().numpy()
    expected = golden_arrays("margins.npz")[f"{name}/logits"]
    # The numbers are float32: a logit near 0 carries the rounding of its cosine, one float32 step times 64.
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=64 * 2**-23)


def test_the_state_dict_of_the_default_model_is_the_released_file():
    with torch.device("meta"):
        state = IEFP().state_dict()
    expected = json.loads((GOLDEN / "iefp_state_dict.json").read_text())
    assert [(key, list(value.shape)) for key, value in state.items()] == list(expected.items())


def test_the_age_file_has_the_layout_of_the_released_one():
    with torch.device("meta"):
        model = IEFP(num_identities=None)
    tensors = age_file_tensors(model.to_empty(device="cpu"))
    expected = json.loads((GOLDEN / "age_state_dict.json").read_text())
    assert [(key, list(value.shape)) for key, value in tensors.items()] == list(expected.items())


# -------------------------------------------------------------------------------------------------------- margin heads


PUBLISHED_MARGINS = ("cosface", "arcface")  # tests/models/test_margin_heads.py has the others


def make_head(name, num_identities, size, **options):
    head = MARGINS[name](num_identities, size=size, **options).double()
    head.load_state_dict({"weight": normal(num_identities, size, seed=99)})
    return head


@pytest.mark.parametrize("scale_and_margin", [(64.0, None), (30.0, 0.2), (1.0, 0.0)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PUBLISHED_MARGINS)
def test_margin_logits_and_gradients_are_the_plain_ones(name, seed, scale_and_margin):
    scale, margin = scale_and_margin
    head = make_head(name, 5, 4, scale=scale, margin=margin)
    features = normal(7, 4, seed=seed).requires_grad_()
    labels = torch.randint(5, (7,), generator=torch.Generator().manual_seed(seed))
    logits = head(features, labels)
    loss_weights = normal(7, 5, seed=seed + 50)
    gradients = torch.autograd.grad((logits * loss_weights).sum(), (features, head.weight))

    options = {} if margin is None else {"margin": margin}
    plain = PLAIN[name](features, head.weight, labels, scale=scale, **options)
    plain_gradients = torch.autograd.grad((plain * loss_weights).sum(), (features, head.weight))
    torch.testing.assert_close(logits, plain, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", PUBLISHED_MARGINS)
def test_margin_gradients_are_finite_differences(name):
    head = make_head(name, 4, 3)
    labels = torch.tensor([0, 3, 1])

    def logits(features, weight):
        return torch.func.functional_call(head, {"weight": weight}, (features, labels))

    inputs = normal(3, 3, seed=1).requires_grad_(), normal(4, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(logits, inputs)


@pytest.mark.parametrize("name", PUBLISHED_MARGINS)
def test_margin_logits_are_the_plain_ones_from_angle_0_to_pi(name):
    """Both ends, where the root in the sine is steep, and both sides of ArcFace's change at pi - m."""
    head = make_head(name, 2, 3)
    change = math.pi - 0.5
    angles = torch.tensor([1e-4, 1e-2, 1.0, change - 1e-6, change + 1e-6, math.pi - 1e-2, math.pi - 1e-4]).double()
    direction = F.normalize(head.weight.detach()[:1])
    across = F.normalize(normal(1, 3, seed=4) - (normal(1, 3, seed=4) * direction).sum() * direction)
    features = 2.5 * (angles.cos()[:, None] * direction + angles.sin()[:, None] * across)
    labels = torch.zeros(len(angles), dtype=torch.long)
    plain = PLAIN[name](features, head.weight, labels)
    torch.testing.assert_close(head(features, labels), plain, rtol=0, atol=1e-8)
    # At the ends themselves the sine is held at 1e-6 for the sake of its gradient.
    ends = torch.cat([3 * direction, -3 * direction])
    plain_ends = PLAIN[name](ends, head.weight, labels[:2])
    torch.testing.assert_close(head(ends, labels[:2]), plain_ends, rtol=0, atol=64 * 1e-6)


def test_arcface_takes_the_straight_line_beyond_pi_minus_margin():
    head = make_head("arcface", 3, 3)
    opposite = -head.weight.detach()[:1]
    logit = head(opposite, torch.tensor([0]))[0, 0].item()
    assert logit == pytest.approx(64 * (-1 - 0.5 * math.sin(math.pi - 0.5)))
    assert logit < -64  # cos(theta + m) would turn back up here


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("directions", [normal(6, 8), torch.eye(6, 8)], ids=["random", "axes"])
@pytest.mark.parametrize("name", PUBLISHED_MARGINS)
def test_gradients_are_finite_where_a_feature_is_its_weight(name, directions, sign, dtype):
    """A random direction has a cosine a rounding away from 1, an axis has 1 exactly."""
    head = MARGINS[name](6, size=8).to(dtype)
    head.load_state_dict({"weight": directions})
    features = (sign * head.weight.detach()).clone().requires_grad_()
    loss = F.cross_entropy(head(features, torch.arange(6)), torch.arange(6))
    for gradient in torch.autograd.grad(loss, (features, head.weight)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", PUBLISHED_MARGINS)
def test_margin_heads_leave_their_inputs_alone(name):
    head = make_head(name, 5, 4)
    features, labels = normal(6, 4), torch.tensor([0, 1, 2, 3, 4, 0])
    before = features.clone(), labels.clone(), head.weight.detach().clone()
    first, second = head(features, labels), head(features, labels)
    assert torch.equal(first, second)
    for now, then in zip((features, labels, head.weight), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("name", PUBLISHED_MARGINS)
def test_without_a_margin_logits_are_scaled_cosines(name):
    head = make_head(name, 5, 4, scale=10.0, margin=0.0)
    features = normal(6, 4)
    cosines = F.cosine_similarity(features[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(features, torch.zeros(6, dtype=torch.long)), 10 * cosines)


def test_the_margin_touches_the_label_and_nothing_else():
    for name in PUBLISHED_MARGINS:
        head, plain = make_head(name, 5, 4), make_head("cosface", 5, 4, margin=0.0)
        labels = torch.tensor([4, 0, 2])
        change = plain(normal(3, 4), labels) - head(normal(3, 4), labels)
        at_label = F.one_hot(labels, 5).bool()
        assert (change[at_label] > 1).all(), name
        assert change[~at_label].abs().max() == 0, name


# ---------------------------------------------------------------------------------------------------------------- CLUB

SIZE = 6


def make_estimator(kind, training):
    estimator = draw(kind(SIZE)).train(training)
    # Their tanh would be flat at the size of those weights.
    nn.init.normal_(estimator.p_logvar[4].weight, 0, 0.2, generator=torch.Generator().manual_seed(1))
    age, identity = normal(5, SIZE, seed=10), normal(5, SIZE, seed=11)
    mu, logvar = reference.gaussian_prediction(age, state_copy(estimator), training)
    return estimator, age, identity, mu, logvar


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [SampledCLUB, CLUB])
def test_log_likelihood_is_the_written_out_sum(kind, training):
    estimator, age, identity, mu, logvar = make_estimator(kind, training)
    expected = reference.log_likelihood(mu, logvar, identity)
    torch.testing.assert_close(estimator.log_likelihood(age, identity), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(estimator(age, identity), expected, rtol=1e-10, atol=0)  # what DDP calls


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("permutation", [[4, 0, 1, 2, 3], [1, 0, 2, 4, 3], [2, 3, 4, 0, 1]])
def test_sampled_mutual_information_is_the_written_out_sum(permutation, training):
    estimator, age, identity, mu, logvar = make_estimator(SampledCLUB, training)
    found = estimator.mutual_information(age, identity, torch.tensor(permutation))
    torch.testing.assert_close(found, reference.sampled_club(mu, logvar, identity, permutation), rtol=1e-10, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_unsampled_mutual_information_is_the_written_out_sum(training):
    estimator, age, identity, mu, logvar = make_estimator(CLUB, training)
    found = estimator.mutual_information(age, identity)
    torch.testing.assert_close(found, reference.unsampled_club(mu, logvar, identity), rtol=1e-10, atol=0)


def test_unsampled_mutual_information_is_the_mean_of_the_sampled_over_all_pairs():
    estimator, age, identity, _, _ = make_estimator(SampledCLUB, training=False)
    unsampled = CLUB(SIZE).double().eval()
    unsampled.load_state_dict(estimator.state_dict())
    shifts = [torch.arange(5).roll(shift) for shift in range(5)]  # together, each n meets each m once
    sampled = [estimator.mutual_information(age, identity, shift) for shift in shifts]
    torch.testing.assert_close(unsampled.mutual_information(age, identity), sum(sampled) / 5, rtol=1e-10, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [SampledCLUB, CLUB])
def test_the_gradient_of_mutual_information_reaches_the_identity_only(kind, training):
    estimator, age, identity, mu, logvar = make_estimator(kind, training)
    age.requires_grad_()
    identity.requires_grad_()
    permutation = torch.tensor([4, 0, 1, 2, 3])
    estimator.mutual_information(age, identity, permutation).backward()
    assert age.grad is None
    assert all(parameter.grad is None for parameter in estimator.parameters())

    written_out = (
        reference.sampled_club(mu, logvar, identity, permutation)
        if kind is SampledCLUB
        else reference.unsampled_club(mu, logvar, identity)
    )
    (expected,) = torch.autograd.grad(written_out, identity)
    torch.testing.assert_close(identity.grad, expected, rtol=1e-9, atol=1e-9)


def test_the_log_likelihood_trains_every_parameter_of_the_estimator():
    estimator, age, identity, _, _ = make_estimator(SampledCLUB, training=True)
    estimator.log_likelihood(age, identity).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in estimator.parameters())


def test_the_permutation_is_random_when_none_is_given_and_repeats_with_the_seed():
    estimator, age, identity, mu, logvar = make_estimator(SampledCLUB, training=False)
    age, identity, mu, logvar = age[:3], identity[:3], mu[:3], logvar[:3]

    def estimates(seed):
        torch.manual_seed(seed)
        return [estimator.mutual_information(age, identity).item() for _ in range(40)]

    assert estimates(0) == estimates(0)
    assert estimates(0) != estimates(1)
    possible = sorted(
        reference.sampled_club(mu, logvar, identity, order).item() for order in itertools.permutations(range(3))
    )
    distinct = sorted({round(estimate, 9) for estimate in estimates(0)})
    assert distinct == pytest.approx(possible, abs=1e-8)  # all six orders come up in 40 draws, and nothing else


def test_a_permutation_that_moves_nobody_gives_no_information():
    estimator, age, identity, _, _ = make_estimator(SampledCLUB, training=False)
    assert estimator.mutual_information(age, identity, torch.arange(5)).item() == 0.0


def test_both_estimators_have_the_same_keys():
    assert list(SampledCLUB(SIZE).state_dict()) == list(CLUB(SIZE).state_dict())


# -------------------------------------------------------------------------------------------------------- purification


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", [0, 1, 2, *PURIFICATION_VARIANTS])
def test_every_purification_unit_is_its_formula(variant, training):
    unit = draw(PurificationUnit(variant, SIZE)).train(training)
    x = normal(5, SIZE, seed=3)
    before = x.clone()
    expected = reference.purification(x, variant, state_copy(unit), training)
    torch.testing.assert_close(unit(x), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(x, before)


def test_scale_0_is_nothing_at_all():
    unit, x = PurificationUnit(0), normal(3, 512)
    assert not unit.state_dict()
    assert unit(x) is x


LINEAR_AND_BATCHNORM_PLACES = {
    1: ([2], [0]),
    2: ([2, 5], [0, 3]),
    3: ([2, 5, 8], [0, 3, 6]),
    "x_minus_linear_relu_bn": ([2], [0]),
    "x_minus_relu_linear_bn": ([1], [0]),
    "x_plus_relu_linear_bn": ([1], [0]),
    "x_plus_linear_relu_bn": ([2], [0]),
    "relu_linear_bn": ([1], [0]),
    "linear_relu_bn": ([2], [0]),
}


@pytest.mark.parametrize("variant", LINEAR_AND_BATCHNORM_PLACES)
def test_parameters_of_a_purification_unit_are_named_by_their_place(variant):
    linear, batchnorm = LINEAR_AND_BATCHNORM_PLACES[variant]
    state = PurificationUnit(variant, SIZE).state_dict()
    weights = {key: value.ndim for key, value in state.items() if key.endswith(".weight")}
    assert weights == {f"seq.{place}.weight": 2 for place in linear} | {f"seq.{place}.weight": 1 for place in batchnorm}


@pytest.mark.parametrize(
    "wrong",
    ["abc", "", "PU_3", "1", "x_minus", -1, 9, 10**9, 1.0, None, True, False, [1], ("relu_linear_bn",)],
    ids=repr,
)
def test_an_unknown_purification_is_a_users_mistake(wrong):
    with pytest.raises(UserError, match=r"0\.\.8 or one of x_minus_linear_relu_bn"):
        PurificationUnit(wrong, SIZE)
    with pytest.raises(UserError, match="purification"):
        IResNet(TINY, wrong)


def test_a_purification_is_read_from_text():
    assert parse_purification("1") == 1
    assert parse_purification(2) == 2
    assert parse_purification("0") == 0
    assert type(parse_purification("1")) is int
    assert parse_purification("x_plus_linear_relu_bn") == "x_plus_linear_relu_bn"


@pytest.mark.parametrize("wrong", ["-1", "9", "abc", "", "--1", "²", "1.0", " 1", "True", True, None, [1]], ids=repr)
def test_a_purification_that_can_not_be_read_is_a_users_mistake(wrong):
    with pytest.raises(UserError, match=r"purification .* is unknown"):
        parse_purification(wrong)


# ------------------------------------------------------------------------------------------------------------- IResNet


def written_out_shapes(blocks, width):
    """Names and shapes of an IResNet without purification unit, from the description of the network."""
    shapes = {}

    def batchnorm(name, planes):
        shapes.update({f"{name}.{key}": (planes,) for key in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (width, 3, 3, 3)
    batchnorm("bn1", width)
    shapes["prelu.weight"] = (width,)
    into = width
    for layer, count in enumerate(blocks, start=1):
        planes = width * 2 ** (layer - 1)
        for block in range(count):
            name = f"layer{layer}.{block}"
            batchnorm(f"{name}.bn1", into)
            shapes[f"{name}.conv1.weight"] = (planes, into, 3, 3)
            batchnorm(f"{name}.bn2", planes)
            shapes[f"{name}.prelu.weight"] = (planes,)
            shapes[f"{name}.conv2.weight"] = (planes, planes, 3, 3)
            batchnorm(f"{name}.bn3", planes)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (planes, into, 1, 1)
                batchnorm(f"{name}.downsample.1", planes)
            into = planes
    batchnorm("bn2", into)
    shapes |= {"fc.weight": (512, into * 7 * 7), "fc.bias": (512,)}
    batchnorm("features", 512)
    return shapes


@pytest.mark.parametrize(
    ("backbone", "blocks", "width"),
    [
        ("iresnet18", (2, 2, 2, 2), 64),
        ("iresnet34", (3, 4, 6, 3), 64),
        ("iresnet50", (3, 4, 14, 3), 64),
        ("iresnet100", (3, 13, 30, 3), 64),
        ("iresnet200", (6, 26, 60, 6), 64),
        ("iresnet18_quarter", (2, 2, 2, 2), 16),
    ],
)
def test_every_backbone_has_its_blocks_names_and_shapes(backbone, blocks, width):
    with torch.device("meta"):
        encoder = IResNet(backbone, 0)
        features = encoder.eval()(torch.empty(2, 3, 112, 112))
    found = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    assert list(found.items()) == list(written_out_shapes(blocks, width).items())
    assert features.shape == (2, 512)
    strides = {name: layer.stride for name, layer in encoder.named_modules() if isinstance(layer, nn.Conv2d)}
    assert {name for name, stride in strides.items() if stride == (2, 2)} == {
        f"layer{n}.0.{conv}" for n in (1, 2, 3, 4) for conv in ("conv2", "downsample.0")
    }


def test_no_backbone_is_left_out_above():
    assert set(BACKBONES) == {f"iresnet{depth}" for depth in (18, 34, 50, 100, 200)} | {"iresnet18_quarter", TINY}


def test_initial_weights_are_the_published_ones():
    torch.manual_seed(0)
    model = IEFP(TINY, 1, 200)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.weight.detach()
            fan_out = weight.shape[0] * math.prod(weight.shape[2:])
            std = math.sqrt(2 / fan_out) if isinstance(layer, nn.Conv2d) else 0.01
            spread = 5 / math.sqrt(2 * weight.numel())  # five standard errors of a standard deviation
            assert weight.std().item() == pytest.approx(std, rel=spread), name
            assert weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(weight.numel())), name
            assert layer.bias is None or not layer.bias.detach().any(), name
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (layer.weight == 1).all(), name
            assert not layer.bias.detach().any(), name
            assert layer.eps == 1e-5
        elif isinstance(layer, nn.PReLU):
            assert (layer.weight == 0.25).all(), name
    assert (model.backbone_id.features.weight == 1).all()
    bound = math.sqrt(6 / (200 + 512))
    margin_weight = model.margin_fc.weight.detach()
    assert 0.999 * bound < margin_weight.abs().max() <= bound
    assert margin_weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_features_are_float32_also_where_autocast_computes_in_bfloat16():
    encoder = IResNet(TINY, 1).eval()
    inner = []
    encoder.layer4.register_forward_hook(lambda module, arguments, output: inner.append(output.dtype))
    with torch.no_grad():
        exact = encoder(faces(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            short = encoder(faces(2))
    assert inner == [torch.float32, torch.bfloat16]
    assert short.dtype == exact.dtype == torch.float32
    assert F.cosine_similarity(short, exact).min() > 0.99


def test_channels_last_gives_the_same_features():
    encoder = IResNet(TINY, 1).double().eval()
    with torch.no_grad():
        expected = encoder(faces(2, torch.float64))
        encoder.to(memory_format=torch.channels_last)
        found = encoder(faces(2, torch.float64).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_row_does_not_know_its_batch_in_eval_mode():
    encoder = IResNet(TINY, 1).double().eval()
    images = faces(3, torch.float64)
    with torch.no_grad():
        alone = torch.cat([encoder(image[None]) for image in images])
        torch.testing.assert_close(encoder(images), alone, rtol=1e-9, atol=1e-9)


def test_batchnorm_momentum_is_set_in_every_layer_of_the_module_given_and_no_other():
    model = IEFP(TINY, 1, 3)
    set_batchnorm_momentum(model.backbone_id, 0.19)
    # Stem 1, five blocks of 3, four shortcuts, two at the end, one in the purification unit.
    assert [layer.momentum for layer in batchnorms(model.backbone_id)] == [0.19] * 23
    assert {layer.momentum for layer in batchnorms(model.backbone_ae) + batchnorms(model.clubmi)} == {0.1}


# ---------------------------------------------------------------------------------------------------------------- IEFP


def test_the_defaults_are_the_published_model():
    parameters = inspect.signature(IEFP).parameters
    assert {name: parameters[name].default for name in list(parameters)[:6]} == {
        "backbone": "iresnet50",
        "purification": 1,
        "num_identities": 93431,
        "margin": "cosface",
        "margin_scale": 64.0,
        "margin_value": 0.35,
    }
    with torch.device("meta"):
        model = IEFP()
    assert type(model.margin_fc) is CosFace
    assert (model.margin_fc.scale, model.margin_fc.margin) == (64.0, 0.35)
    assert type(model.clubmi) is SampledCLUB
    assert {model.backbone_id.backbone, model.backbone_ae.backbone} == {"iresnet50"}
    assert (model.backbone_id.purification, model.backbone_ae.purification) == (1, 1)


@pytest.mark.parametrize(
    ("margin", "value", "used"),
    [("cosface", None, 0.35), ("arcface", None, 0.5), ("cosface", 0.0, 0.0), ("arcface", 0.3, 0.3)],
)
def test_no_margin_value_means_the_heads_own_default_and_zero_means_zero(margin, value, used):
    with torch.device("meta"):
        head = IEFP(TINY, 1, 3, margin=margin, margin_value=value).margin_fc
    assert type(head) is {"cosface": CosFace, "arcface": ArcFace}[margin]
    assert head.margin == used


def test_without_identities_there_is_no_margin_head_and_nothing_else_is_missing():
    with torch.device("meta"):
        with_head, without = IEFP(TINY, 1, 3), IEFP(TINY, 1, None)
    assert without.margin_fc is None
    assert set(with_head.state_dict()) - set(without.state_dict()) == {"margin_fc.weight"}


def test_the_age_branch_may_differ_from_the_identity_branch():
    with torch.device("meta"):
        model = IEFP("iresnet18", 0, None, age_backbone="iresnet34", age_purification="relu_linear_bn")
    assert (model.backbone_id.backbone, model.backbone_id.purification) == ("iresnet18", 0)
    assert (model.backbone_ae.backbone, model.backbone_ae.purification) == ("iresnet34", "relu_linear_bn")


def test_the_two_branches_are_separate_networks_drawn_apart():
    model = IEFP(TINY, 1, None)
    assert not torch.equal(model.backbone_id.conv1.weight, model.backbone_ae.conv1.weight)
    model.eval()
    with torch.no_grad():
        age = model.age_features(faces(2))
        assert age.shape == (2, 512)
        assert not torch.allclose(model.identity_features(faces(2)), age)
        assert model.age_logits(age).shape == (2, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet50"}, r"backbone 'resnet50' is unknown: give one of iresnet18, "),
        ({"age_backbone": "vgg"}, "backbone 'vgg' is unknown"),
        ({"purification": "x"}, "purification 'x' is unknown"),
        ({"age_purification": -3}, "purification -3 is unknown"),
        ({"margin": "softmax"}, "margin 'softmax' is unknown: give one of cosface, arcface"),
        ({"estimator": "mine"}, "estimator 'mine' is unknown: give one of sampled, unsampled"),
        ({"num_identities": 0}, "num_identities 0 is out of range"),
        ({"num_identities": -5}, "num_identities -5 is out of range"),
    ],
    ids=str,
)
def test_what_can_not_be_built_is_a_users_mistake(arguments, message):
    with torch.device("meta"), pytest.raises(UserError, match=message) as raised:
        IEFP(**{"backbone": TINY, "num_identities": 3} | arguments)
    assert "\n" not in str(raised.value)


def test_a_frozen_age_branch_gets_no_gradients_and_stays_in_eval_mode():
    model = IEFP(TINY, 1, None)
    assert model.freeze_age_branch() is model
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert model.training is mode
        assert all(module.training is mode for module in model.backbone_id.modules())
        assert all(module.training is mode for module in model.clubmi.modules())
        frozen = [*model.backbone_ae.modules(), *model.age_estimator.modules()]
        assert not any(module.training for module in frozen)
    age = model.age_features(faces(2))
    loss = model.identity_features(faces(2)).square().sum() + model.age_logits(age).sum() + age.sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        of_age_branch = name.startswith(("backbone_ae.", "age_estimator."))
        assert parameter.requires_grad is not of_age_branch, name
        assert (parameter.grad is not None) == name.startswith("backbone_id."), name


def test_freezing_takes_effect_at_once_and_keeps_the_mode_of_the_rest():
    training, evaluating = IEFP(TINY, 1, None).freeze_age_branch(), IEFP(TINY, 1, None).eval().freeze_age_branch()
    assert training.backbone_id.training
    assert not training.backbone_ae.training
    assert not evaluating.backbone_id.training


def test_statistics_of_a_frozen_age_branch_stand_still_in_training():
    model = IEFP(TINY, 1, None).freeze_age_branch().train()
    before = state_copy(model)
    model.identity_features(faces(2))
    model.age_features(faces(2))
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    buffers = {name for name, _ in model.named_buffers() if name.startswith("backbone_id.")}
    assert moved == buffers
    assert any(name.endswith("running_mean") for name in moved)


def test_an_age_branch_that_is_not_frozen_trains():
    model = IEFP(TINY, 1, None).train()
    before = model.backbone_ae.bn1.running_mean.clone()
    model.age_logits(model.age_features(faces(2))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.backbone_ae.parameters())
    assert not torch.equal(model.backbone_ae.bn1.running_mean, before)


@pytest.mark.parametrize("head_class", [CosFace, ArcFace])
def test_the_loss_is_the_cross_entropy_of_the_logits_with_its_gradients(head_class):
    """In float64 to 1e-12, also where a label comes twice."""
    torch.manual_seed(1)
    head = head_class(50).double()
    features = torch.randn(6, 512, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([3, 49, 3, 0, 7, 7])
    results = []
    for loss in (F.cross_entropy(head(features, labels), labels), head.loss(features, labels)):
        results.append([loss, *torch.autograd.grad(3 * loss, [features, head.weight])])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-14)


def test_the_loss_keeps_one_matrix_of_batch_by_identities():
    head, features = CosFace(3001), torch.randn(7, 512, requires_grad=True)
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        head.loss(features, torch.arange(7))
    assert sum(size == 7 * 3001 for size in kept.values()) == 1
    assert all(size <= 3001 * 512 for size in kept.values())
