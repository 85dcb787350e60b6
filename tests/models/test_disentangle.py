"""--disentangle: each method has the property that it is named for, and every method trains and resumes."""

import json
import shutil

import pytest
import torch
from conftest import SMALL
from scripts import TINY, load_script
from torch import nn
from torch.nn import functional as F

from data.faces import index_identity_folders
from data.record_packing import pack_folder
from meta import NUM_AGE_GROUPS, TRAINING_SETS
from models.club import SampledCLUB
from models.disentangle.base import Critic
from models.disentangle.dal import correlation
from models.disentangle.grl import reverse_gradient
from models.disentangle.orthogonal import AgeOfLength
from models.disentangle.registry import CRITICS
from models.iefp import IEFP
from models.margin import CosFace
from models.weights import load_estimator, load_identity_branch
from training.age_feature_cache import why_no_age_cache
from utils.distributed import DistInfo

SIZE = 6
METHODS = ("none", *CRITICS)
OTHERS = tuple(name for name in CRITICS if name != "iefp")  # whose weights are in addition to the published ones


def normal(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def critic_of(method, size=SIZE) -> Critic:
    torch.manual_seed(1)
    return (AgeOfLength() if method == "orthogonal" else CRITICS[method](size)).double()


@pytest.fixture
def batch():
    """Age features, identity features and age groups of 20 pictures; four ages are unknown."""
    age_groups = torch.randint(NUM_AGE_GROUPS, (20,), generator=torch.Generator().manual_seed(3))
    age_groups[::5] = -1
    return normal(20, SIZE, seed=1), normal(20, SIZE, seed=2), age_groups


def raise_objective(critic, age, identity, age_groups, steps) -> list[float]:
    optimiser = torch.optim.Adam(critic.parameters(), lr=0.02)
    values = []
    for _ in range(steps):
        objective = critic(age, identity, age_groups)
        optimiser.zero_grad()
        (-objective).backward()
        optimiser.step()
        values.append(objective.item())
    return values


# ------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("method", CRITICS)
def test_a_critic_learns_and_its_penalty_reaches_the_identity_features_alone(method, batch):
    age, identity, age_groups = batch
    critic, identity = critic_of(method), identity.requires_grad_()
    age = age.requires_grad_()
    critic.penalty(age, identity, age_groups, None).backward()
    assert identity.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in critic.parameters())
    values = raise_objective(critic, age.detach(), identity.detach(), age_groups, 50)
    assert values[-1] > values[0] + 0.01


@pytest.mark.parametrize("method", ["grl", "orthogonal"])
def test_pictures_of_unknown_age_count_for_nothing(method, batch):
    age, identity, age_groups = batch
    critic, known = critic_of(method), age_groups >= 0
    for ask in (critic, lambda *given: critic.penalty(*given, None)):
        torch.testing.assert_close(ask(age, identity, age_groups), ask(age[known], identity[known], age_groups[known]))
        assert ask(age, identity, torch.full_like(age_groups, -1)) == 0


# ---------------------------------------------------------------------------------------------------- one by one


def test_the_reversed_gradient_is_minus_the_gradient():
    x = normal(4, 3).requires_grad_()
    weights = normal(4, 3, seed=1)
    (gradient,) = torch.autograd.grad((reverse_gradient(x) * weights).sum(), x)
    assert torch.equal(reverse_gradient(x), x) and torch.equal(gradient, -weights)


def test_gradient_reversal_gives_the_encoder_minus_lambda_times_the_classifiers_gradient(batch):
    _, identity, age_groups = batch
    critic, weight, identity = critic_of("grl"), 0.3, identity.requires_grad_()
    cross_entropy = F.cross_entropy(critic.layers(F.normalize(identity) * SIZE**0.5), age_groups, ignore_index=-1)
    (plain,) = torch.autograd.grad(cross_entropy, identity)
    penalty = critic.penalty(None, identity, age_groups, None)
    (reversed_gradient,) = torch.autograd.grad(weight * penalty, identity)
    torch.testing.assert_close(penalty, cross_entropy)
    torch.testing.assert_close(reversed_gradient, -weight * plain)
    (of_critic,) = torch.autograd.grad(-critic(None, identity, age_groups), identity)
    torch.testing.assert_close(of_critic, plain)  # the classifier itself is taught the right way round


def first_canonical_correlation(a, b) -> float:
    """By QR and singular values (Bjorck, Golub, 1973)."""
    bases = [torch.linalg.qr(x - x.mean(dim=0)).Q for x in (a, b)]
    return torch.linalg.svdvals(bases[0].T @ bases[1])[0].item()


def related(size, count=500):
    """Age features (N, 6) and others (N, size) that share one hidden direction."""
    hidden = normal(count, 1, seed=7)
    age = normal(count, SIZE, seed=8) + hidden @ normal(1, SIZE, seed=9)
    return age, normal(count, size, seed=10) + hidden @ normal(1, size, seed=11)


def test_dals_directions_find_the_first_canonical_correlation():
    age, identity = related(SIZE)
    critic = critic_of("dal")
    raise_objective(critic, age, identity, None, 600)
    expected = first_canonical_correlation(age, identity)
    assert 0.3 < expected < 0.99
    assert critic(age, identity, None).item() == pytest.approx(expected, abs=1e-4)
    assert critic.penalty(age, identity, None, None).item() == pytest.approx(expected, abs=1e-4)


def test_an_encoder_against_dals_directions_loses_the_correlation():
    """It has to lose dimensions: the canonical correlation is the same after any invertible map."""
    age, pictures = related(2 * SIZE)
    torch.manual_seed(2)
    encoder, critic = nn.Linear(2 * SIZE, SIZE).double(), critic_of("dal")
    optimiser = torch.optim.SGD(encoder.parameters(), lr=0.3)
    before = first_canonical_correlation(age, encoder(pictures).detach())
    for _ in range(300):
        raise_objective(critic, age, encoder(pictures).detach(), None, critic.updates)
        optimiser.zero_grad()
        critic.penalty(age, encoder(pictures), None, None).backward()
        optimiser.step()
    after = first_canonical_correlation(age, encoder(pictures).detach())
    assert before > 0.7 and after < 0.5 * before


def test_the_correlation_is_numpys_and_0_where_all_are_equal():
    a, b = normal(30), normal(30, seed=1)
    assert correlation(a, b).item() == pytest.approx(abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()))
    assert correlation(torch.ones(5), normal(5).float()) == 0


def test_age_of_length_moves_lengths_alone_and_the_margin_directions_alone(batch):
    _, identity, age_groups = batch
    identity = identity.requires_grad_()
    directions = F.normalize(identity.detach())
    (of_age,) = torch.autograd.grad(critic_of("orthogonal").penalty(None, identity, age_groups, None), identity)
    across = of_age - (of_age * directions).sum(dim=1, keepdim=True) * directions
    assert across.abs().max() < 1e-15 and of_age.abs().max() > 1e-3
    head = CosFace(5, size=SIZE).double()
    (of_margin,) = torch.autograd.grad(head.loss(identity, age_groups.clamp(0, 4)), identity)
    along = (of_margin * directions).sum(dim=1)
    assert along.abs().max() < 1e-12 and of_margin.abs().max() > 1e-3


def test_age_of_length_is_half_the_squared_error_of_a_line():
    critic, lengths = critic_of("orthogonal"), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        critic.slope.fill_(2.0)
        critic.offset.fill_(0.5)
    identity = F.normalize(normal(3, SIZE)) * lengths[:, None]
    groups = torch.tensor([1, 4, 0])
    expected = sum(
        (2.0 * float(length) / SIZE**0.5 + 0.5 - int(group)) ** 2 for length, group in zip(lengths, groups, strict=True)
    )
    assert critic.penalty(None, identity, groups, None).item() == pytest.approx(expected / 3 / 2)


# ----------------------------------------------------------------------------------------------------- in training


def weights_of(run_folder) -> dict[str, torch.Tensor]:
    return torch.load(run_folder / "iefp.pth", weights_only=True)


def differences(a, b, prefixes=("",)) -> list[str]:
    return [key for key in a if key.startswith(prefixes) and not torch.equal(a[key], b[key])]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_resumes_to_the_bit_in_the_published_layout_and_is_named_beside(train_identity, tmp_path, method):
    flags = ("--disentangle", method, "--epochs", 1, "--save-every", 1, "--keep-checkpoints", 9)
    assert train_identity(tmp_path / "run", *flags).status == 0
    whole = weights_of(tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step_*.pth"))
    content = torch.load(checkpoints[-1], weights_only=True)
    assert set(content["optimisers"]) == {"identity"} | {"iefp": {"club"}, "none": set()}.get(method, {"critic"})
    assert any(key.startswith("critic.") for key in content["model"]) == (method in OTHERS)
    for path in checkpoints[1:]:
        path.unlink()
    (tmp_path / "run" / "iefp.pth").unlink()
    outcome = train_identity(tmp_path / "run", *flags)
    assert outcome.status == 0 and "1 steps done" in outcome.out
    assert differences(whole, weights_of(tmp_path / "run")) == []

    with torch.device("meta"):
        assert list(whole) == list(IEFP(TINY, 1, 6).state_dict())
    assert json.loads((tmp_path / "run" / "iefp.json").read_text())["disentangle"] == method
    model = IEFP(TINY, 1, None)
    load_identity_branch(model, tmp_path / "run" / "iefp.pth")
    assert load_estimator(model, tmp_path / "run" / "iefp.pth") == (method == "iefp")
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    if method != "none":
        critic = CRITICS[method]
        assert {critic.objective_name, critic.penalty_name, f"{critic.name}_gradient_norm"} <= events[1].keys()
    assert ("age_loss" in events[1]) == (method in ("iefp", "dal"))


def two_steps(method="iefp", **settings) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The model's tensors after two steps of stage identity, and the losses of both."""
    train = load_script("train")
    torch.manual_seed(0)
    critic = method if method in CRITICS else None
    model = IEFP(TINY, 1, 3, critic=critic).train()
    config = train.TrainConfig(disentangle=method, learning_rate=0.02, precision="fp32", **settings)
    stage = train.IdentityStage(config, model, DistInfo(0, 1, torch.device("cpu")))
    losses = []
    for step in range(2):
        images, permutation = normal(4, 3, 112, 112, seed=step).float(), torch.tensor([3, 0, 1, 2])
        labels = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 7, -1, 3])
        losses.append(stage.step(train.Batch(images, *labels, permutation=permutation, step=step)))
    return model.state_dict(), losses


def test_none_is_lambda_0_less_clubs_work_and_every_other_method_changes_the_identity_branch():
    none, _ = two_steps("none")
    identity = ("backbone_id.", "margin_fc.")
    lambda_0, losses = two_steps(mutual_information_weight=0)
    assert differences(none, lambda_0, identity) == [] and losses[0]["log_likelihood"] != 0
    assert differences(none, lambda_0, ("clubmi.",))  # there it learns, without a use
    for method in OTHERS:
        assert differences(none, two_steps(method, disentangle_weight=0)[0], identity) == [], method
        assert differences(none, two_steps(method)[0], identity), method
    iefp, losses = two_steps(mutual_information_weight=1)
    assert differences(none, iefp, identity)
    twice, losses_of_twice = two_steps(mutual_information_weight=1, club_steps=2)
    assert differences(iefp, twice, identity)
    assert losses_of_twice[0]["log_likelihood"] == losses[0]["log_likelihood"]  # as it was before its updates
    warming_up, _ = two_steps(mutual_information_weight=1, mutual_information_warmup=10**9)
    assert max((warming_up[key] - none[key]).abs().max() for key in none if key.startswith("backbone_id.")) < 1e-5


def test_lambda_rises_in_a_straight_line():
    train = load_script("train")
    config = train.TrainConfig(mutual_information_warmup=4, mutual_information_weight=0.2)
    critic = SampledCLUB()
    risen = [train.penalty_weight(config, critic, step) for step in (0, 1, 2, 4, 5, 100)]
    assert risen == pytest.approx([0, 0.05, 0.1, 0.2, 0.2, 0.2])
    assert train.penalty_weight(train.TrainConfig(), critic, 0) == 0.001


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--disentangle", "grl", "--mutual-information-weight", 1), "--mutual-information-weight does nothing with"),
        (("--disentangle", "none", "--club-steps", 2), "--club-steps does nothing with --disentangle none"),
        (("--disentangle", "none", "--disentangle-weight", 1), "give --disentangle dal or grl or orthogonal"),
        (("--disentangle-weight", 1), "--disentangle-weight does nothing with --disentangle iefp"),
        (("--stage", "age", "--disentangle", "dal"), "--disentangle do nothing with --stage age"),
        (("--club-steps", 0), "--club-steps 0 is out of range"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(train_identity, tmp_path, flags, words):
    outcome = train_identity(tmp_path / "run", *flags)
    assert outcome.status == 2 and words in outcome.err and len(outcome.err.strip().splitlines()) == 1


@pytest.mark.parametrize("method", ["grl", "orthogonal"])
def test_a_method_that_goes_by_age_groups_asks_for_ages(run_main, tiny_faces, age_weights, tmp_path, method):
    folder = tiny_faces / TRAINING_SETS["ms1mv3"].folder
    pack_folder(index_identity_folders(folder, None), tmp_path / "train.rec")
    outcome = run_main("train", "--train-data", tmp_path / "train.rec", "--age-weights", age_weights, *SMALL,
                       "--run-folder", tmp_path / "run", "--disentangle", method)  # fmt: skip
    assert outcome.status == 2 and f"--disentangle {method} needs: give --ages" in outcome.err


def test_a_run_begun_before_these_flags_goes_on(train_identity, plain_run, tmp_path):
    run = shutil.copytree(plain_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    for name in ("disentangle", "disentangle_weight", "club_steps", "mutual_information_warmup", "margin_values"):
        del config[name]
    (run / "config.json").write_text(json.dumps(config))
    assert train_identity(run, "--epochs", 1).status == 0
    outcome = train_identity(run, "--epochs", 1, "--disentangle", "none")
    assert outcome.status == 2 and "--disentangle iefp -> none" in outcome.err


@pytest.mark.parametrize("method", ["none", "grl"])
def test_no_age_features_are_kept_where_none_are_used(method):
    config = load_script("train").TrainConfig(disentangle=method)
    assert why_no_age_cache(config) == f"no age features are cached: --disentangle {method} uses none"
