"""Networks and estimator agree with the known-good numbers and with slow plain versions."""

import inspect
import itertools
import json
import math

import numpy as np
import pytest
import reference
import torch
from golden_weights import filled
from scripts import ROOT, SLIM, TINY
from torch import nn
from torch.nn import functional as F

from meta import UserError
from models.club import CLUB, SampledCLUB
from models.iefp import IEFP
from models.iresnet import BACKBONES, IResNet, set_batchnorm_momentum
from models.margin import ArcFace, CosFace
from models.purification import PURIFICATION_VARIANTS, PurificationUnit, parse_purification
from models.weights import age_file_tensors

GOLDEN = ROOT / "tests" / "golden"
RELATIVE = 1e-6


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
    """With scales 0 and 1 too, from the features that go into the unit: these do not depend on it."""
    pixels = np.random.RandomState(0).uniform(-1, 1, (4, 3, 112, 112)).astype(np.float32)
    images, inner = torch.from_numpy(pixels).double(), []
    model = filled(backbone, purification, 10).eval()
    for branch in (model.backbone_id, model.backbone_ae):
        branch.features.register_forward_hook(lambda module, given, output: inner.append(output))
    with torch.no_grad():
        outer = model.identity_features(images), model.age_features(images)
        known_good(f"{backbone}/purification{purification}/", model, *outer)
        if backbone == "iresnet18":
            known_good("iresnet18/purification0/", model, *inner)
            one = filled(backbone, 1, 10).eval()
            outer = one.backbone_id.spu(inner[0]), one.backbone_ae.spu(inner[1])
            known_good("iresnet18/purification1/", one, *outer)


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
def test_log_likelihood_is_the_written_out_sum_and_trains_the_estimator(kind, training):
    estimator, age, identity, mu, logvar = make_estimator(kind, training)
    expected = reference.log_likelihood(mu, logvar, identity)
    torch.testing.assert_close(estimator.log_likelihood(age, identity), expected, rtol=1e-10, atol=0)
    given = estimator(age, identity)  # what DDP calls
    torch.testing.assert_close(given, expected, rtol=1e-10, atol=0)
    given.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in estimator.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("permutation", [None, [4, 0, 1, 2, 3], [1, 0, 2, 4, 3], [0, 1, 2, 3, 4]])
def test_mutual_information_is_the_written_out_sum_whose_gradient_reaches_the_identity_only(permutation, training):
    """Of the unsampled estimator where no permutation is given."""
    estimator, age, identity, mu, logvar = make_estimator(SampledCLUB if permutation else CLUB, training)
    age.requires_grad_()
    identity.requires_grad_()
    if permutation:
        expected = reference.sampled_club(mu, logvar, identity, permutation)
        found = estimator.mutual_information(age, identity, torch.tensor(permutation))
    else:
        expected = reference.unsampled_club(mu, logvar, identity)
        found = estimator.mutual_information(age, identity)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    found.backward()
    assert age.grad is None and all(parameter.grad is None for parameter in estimator.parameters())
    torch.testing.assert_close(identity.grad, *torch.autograd.grad(expected, identity), rtol=1e-9, atol=1e-9)


def test_unsampled_mutual_information_is_the_mean_of_the_sampled_over_all_pairs():
    estimator, age, identity, _, _ = make_estimator(SampledCLUB, training=False)
    unsampled = CLUB(SIZE).double().eval()
    unsampled.load_state_dict(estimator.state_dict())
    shifts = [torch.arange(5).roll(shift) for shift in range(5)]  # together, each n meets each m once
    sampled = [estimator.mutual_information(age, identity, shift) for shift in shifts]
    torch.testing.assert_close(unsampled.mutual_information(age, identity), sum(sampled) / 5, rtol=1e-10, atol=0)


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
    assert not unit.state_dict() and unit(x) is x


@pytest.mark.parametrize("wrong", ["abc", "", "PU_3", "1", "x_minus", -1, 9, 1.0, None, True, [1]], ids=repr)
def test_an_unknown_purification_is_a_users_mistake(wrong):
    with pytest.raises(UserError, match=r"0\.\.8 or one of x_minus_linear_relu_bn"):
        PurificationUnit(wrong, SIZE)


def test_a_purification_is_read_from_text():
    read = [parse_purification(text) for text in ("1", 2, "0", "x_plus_linear_relu_bn")]
    assert read == [1, 2, 0, "x_plus_linear_relu_bn"] and type(read[0]) is int
    for wrong in ("-1", "9", "abc", "", "--1", "²", "1.0", " 1", "True", True, None, [1]):
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


ARCHITECTURES = {
    "iresnet18": ((2, 2, 2, 2), 64),
    "iresnet34": ((3, 4, 6, 3), 64),
    "iresnet50": ((3, 4, 14, 3), 64),
    "iresnet100": ((3, 13, 30, 3), 64),
    "iresnet200": ((6, 26, 60, 6), 64),
    "iresnet18_quarter": ((2, 2, 2, 2), 16),
    TINY: ((1, 1, 1, 2), 1),
    SLIM: ((1, 1, 1, 2), 4),
}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_its_blocks_names_and_shapes(backbone):
    with torch.device("meta"):
        encoder = IResNet(backbone, 0)
        features = encoder.eval()(torch.empty(2, 3, 112, 112))
    found = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    assert list(found.items()) == list(written_out_shapes(*ARCHITECTURES[backbone]).items())
    assert features.shape == (2, 512)
    strides = {name: layer.stride for name, layer in encoder.named_modules() if isinstance(layer, nn.Conv2d)}
    assert {name for name, stride in strides.items() if stride == (2, 2)} == {
        f"layer{n}.0.{conv}" for n in (1, 2, 3, 4) for conv in ("conv2", "downsample.0")
    }


def test_initial_weights_are_the_published_ones():
    torch.manual_seed(0)
    model = IEFP(SLIM, 1, 200)
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


@pytest.mark.parametrize("is_erased", [False, True])
def test_features_are_float32_also_where_autocast_computes_in_bfloat16(is_erased):
    encoder = IResNet(SLIM, 1).eval()
    encoder.set_erasure(is_erased)
    inner = []
    encoder.layer4.register_forward_hook(lambda module, arguments, output: inner.append(output.dtype))
    with torch.no_grad():
        exact = encoder(faces(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            short = encoder(faces(2))
    assert inner == [torch.float32, torch.bfloat16]
    assert short.dtype == exact.dtype == torch.float32
    assert F.cosine_similarity(short, exact).min() > 0.99


def test_in_eval_mode_a_row_knows_neither_its_batch_nor_the_layout_of_memory():
    encoder, images = IResNet(SLIM, 1).double().eval(), faces(3, torch.float64)
    with torch.no_grad():
        expected = encoder(images)
        alone = torch.cat([encoder(image[None]) for image in images])
        channels_last = encoder.to(memory_format=torch.channels_last)(
            images.contiguous(memory_format=torch.channels_last)
        )
    torch.testing.assert_close(alone, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(channels_last, expected, rtol=1e-9, atol=1e-9)


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
    assert type(head) is {"cosface": CosFace, "arcface": ArcFace}[margin] and head.margin == used


def test_a_margin_head_may_be_missing_and_branches_may_differ():
    with torch.device("meta"):
        whole, without = IEFP(TINY, 1, 3), IEFP(TINY, 1, None)
        apart = IEFP("iresnet18", 0, None, age_backbone="iresnet34", age_purification="relu_linear_bn")
    assert without.margin_fc is None
    assert set(whole.state_dict()) - set(without.state_dict()) == {"margin_fc.weight"}
    assert (apart.backbone_id.backbone, apart.backbone_id.purification) == ("iresnet18", 0)
    assert (apart.backbone_ae.backbone, apart.backbone_ae.purification) == ("iresnet34", "relu_linear_bn")


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


@pytest.fixture
def frozen() -> IEFP:
    return IEFP(TINY, 1, None).freeze_age_branch()


def test_a_frozen_age_branch_gets_no_gradients_and_stays_in_eval_mode(frozen):
    assert frozen.training and not frozen.backbone_ae.training  # at once
    for mode in (False, True):
        assert frozen.train(mode) is frozen and frozen.training is mode
        assert all(module.training is mode for module in [*frozen.backbone_id.modules(), *frozen.clubmi.modules()])
        assert not any(module.training for module in [*frozen.backbone_ae.modules(), *frozen.age_estimator.modules()])
    assert not IEFP(TINY, 1, None).eval().freeze_age_branch().backbone_id.training
    age = frozen.age_features(faces(2))
    loss = frozen.identity_features(faces(2)).square().sum() + frozen.age_logits(age).sum() + age.sum()
    loss.backward()
    for name, parameter in frozen.named_parameters():
        of_age_branch = name.startswith(("backbone_ae.", "age_estimator."))
        assert parameter.requires_grad is not of_age_branch, name
        assert (parameter.grad is not None) == name.startswith("backbone_id."), name


def test_statistics_of_a_frozen_age_branch_stand_still_in_training(frozen):
    before = state_copy(frozen.train())
    frozen.identity_features(faces(2))
    frozen.age_features(faces(2))
    moved = {key for key, value in frozen.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {name for name, _ in frozen.named_buffers() if name.startswith("backbone_id.")}
    assert any(name.endswith("running_mean") for name in moved)


def test_an_age_branch_that_is_not_frozen_trains():
    model = IEFP(TINY, 1, None).train()
    before = model.backbone_ae.bn1.running_mean.clone()
    model.age_logits(model.age_features(faces(2))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.backbone_ae.parameters())
    assert not torch.equal(model.backbone_ae.bn1.running_mean, before)
