"""--disentangle: each method has the property that it is named for, and every method trains and resumes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL
from scripts import TINY, load_script
from test_sharded_margin import in_threads
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
from training.config import TrainConfig
from utils.distributed import DistInfo

SIZE = 6
METHODS = ("none", *CRITICS)
LEARNING = tuple(name for name, critic in CRITICS.items() if critic.updates)
FLAGS_OF = {"inter_prototype": ("--child-pictures", 1)}  # for few pictures
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


@pytest.mark.parametrize("method", LEARNING)
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


# ------------------------------------------------------------------------------------------------- inter_prototype

AGES_OF = {0: [0, 0, 7, 0], 1: [0, 0], 2: [0, 0, 0], 3: [7, 7, 7, 7], 4: [0, -1, -1, -1], 5: [1, 1, 1], 6: [0] * 9}
CHILDREN = [0, 2, 6]  # by three pictures of group 0


def attached(own=None, total=lambda value: value):
    """The critic on a head of 8 people, of the last of whom there is no picture; and the head."""
    head, critic = CosFace(8, size=SIZE, own=own).double(), CRITICS["inter_prototype"]()
    with torch.no_grad():
        head.weight.copy_(normal(8, SIZE)[head.own.start : head.own.stop])
    identities = np.repeat(list(AGES_OF), [len(groups) for groups in AGES_OF.values()])
    critic.attach(TrainConfig(child_pictures=3), head, identities, np.concatenate(list(AGES_OF.values())), total)
    return critic, head


def penalty_and_gradient(critic, head) -> tuple[torch.Tensor, torch.Tensor]:
    penalty = critic.penalty(None, None, None, None)
    return penalty.detach(), torch.autograd.grad(penalty, head.weight)[0]


def test_inter_prototype_is_the_mean_squared_cosine_of_childrens_weight_vectors():
    """Over all ordered pairs of people known as children, of which those of one person count 0; with its gradient."""
    critic, head = attached()
    rows = F.normalize(head.weight[CHILDREN])
    plain = ((rows @ rows.t() - torch.eye(len(CHILDREN))) ** 2).mean()
    penalty, gradient = penalty_and_gradient(critic, head)
    torch.testing.assert_close(penalty, plain.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain, head.weight)[0], rtol=1e-9, atol=1e-12)


def test_inter_prototype_pushes_children_apart_and_leaves_everybody_else_alone():
    critic, head = attached()
    with torch.no_grad():
        head.weight[2] = head.weight[0] + 0.3 * head.weight[2]  # two children who are much alike
    before, gradient = penalty_and_gradient(critic, head)
    others = [i for i in range(8) if i not in CHILDREN]
    assert not gradient[others].any() and gradient[CHILDREN].any(dim=1).all()
    alike, optimiser = F.cosine_similarity(head.weight[0], head.weight[2], dim=0), torch.optim.SGD([head.weight], lr=1)
    for _ in range(50):
        optimiser.zero_grad()
        critic.penalty(None, None, None, None).backward()
        optimiser.step()
    after, _ = penalty_and_gradient(critic, head)
    assert alike > 0.9 and F.cosine_similarity(head.weight[0], head.weight[2], dim=0).abs() < 0.5 * alike
    assert 0 <= after < 0.2 * before


@pytest.mark.parametrize("is_sampled", [False, True])
def test_shares_of_a_head_have_the_penalty_and_the_gradient_of_the_whole(is_sampled):
    penalty, gradient = penalty_and_gradient(*attached())

    def part(rank, collectives):
        critic, head = attached(range(3) if rank == 0 else range(3, 8), collectives.sum)
        head.has_sparse_gradient = is_sampled
        return penalty_and_gradient(critic, head)

    penalties, gradients = zip(*in_threads(2, part), strict=True)
    for one in penalties:
        torch.testing.assert_close(one, penalty, rtol=1e-12, atol=0)
    assert all(one.is_sparse == is_sampled for one in gradients)
    torch.testing.assert_close(torch.cat([one.to_dense() for one in gradients]), gradient, rtol=1e-9, atol=1e-12)


def test_inter_prototype_asks_for_two_children(train_identity, tmp_path):
    outcome = train_identity(tmp_path / "run", "--disentangle", "inter_prototype")
    assert outcome.status == 2 and len(outcome.err.strip().splitlines()) == 1
    assert "have 10 pictures of up to 12 years" in outcome.err and "holds 0 of them: lower --child-p" in outcome.err


# ----------------------------------------------------------------------------------------------------- in training


def weights_of(run_folder) -> dict[str, torch.Tensor]:
    return torch.load(run_folder / "iefp.pth", weights_only=True)


def differences(a, b, prefixes=("",)) -> list[str]:
    return [key for key in a if key.startswith(prefixes) and not torch.equal(a[key], b[key])]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_resumes_to_the_bit_in_the_published_layout_and_is_named_beside(train_identity, tmp_path, method):
    flags = ("--disentangle", method, *FLAGS_OF.get(method, ()), "--epochs", 1, "--save-every", 1,
             "--keep-checkpoints", 9)  # fmt: skip
    assert train_identity(tmp_path / "run", *flags).status == 0
    whole = weights_of(tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step_*.pth"))
    content = torch.load(checkpoints[-1], weights_only=True)
    trained = {CRITICS[method].name} if method in LEARNING else set()
    assert set(content["optimisers"]) == {"identity"} | trained
    assert any(key.startswith("critic.") for key in content["model"]) == ("critic" in trained)
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
        learned = {critic.objective_name, f"{critic.name}_gradient_norm"} if method in LEARNING else set()
        assert {critic.penalty_name, *learned} <= events[1].keys()
    assert ("age_loss" in events[1]) == (method in ("iefp", "dal"))


def two_steps(method="iefp", **settings) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The model's tensors after two steps of stage identity, and the losses of both."""
    train = load_script("train")
    torch.manual_seed(0)
    critic = method if method in CRITICS else None
    model = IEFP(TINY, 1, 3, critic=critic).train()
    config = train.TrainConfig(disentangle=method, learning_rate=0.02, precision="fp32", **settings)
    stage = train.IdentityStage(config, model, DistInfo(0, 1, torch.device("cpu")))
    if stage.critic is not None:
        one_each = dataclasses.replace(config, child_pictures=1)
        stage.critic.attach(one_each, model.margin_fc, np.arange(3), np.array([0, 7, 0]), lambda value: value)
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
        (
            ("--disentangle", "none", "--disentangle-weight", 1),
            "give --disentangle dal or grl or inter_prototype or orthogonal",
        ),
        (("--disentangle-weight", 1), "--disentangle-weight does nothing with --disentangle iefp"),
        (("--stage", "age", "--disentangle", "dal"), "--disentangle do nothing with --stage age"),
        (("--disentangle", "dal", "--child-pictures", 3), "--child-pictures does nothing with --disentangle dal"),
        (("--club-steps", 0), "--club-steps 0 is out of range"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(train_identity, tmp_path, flags, words):
    outcome = train_identity(tmp_path / "run", *flags)
    assert outcome.status == 2 and words in outcome.err and len(outcome.err.strip().splitlines()) == 1


@pytest.mark.parametrize("method", ["grl", "orthogonal", "inter_prototype"])
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
