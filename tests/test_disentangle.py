"""--disentangle: each method has the property that it is named for, and every method trains, resumes and is told."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meta import NUM_AGE_GROUPS
from models.dal import correlation
from models.disentangle import CRITICS
from models.grl import reverse_gradient
from models.margin import CosFace
from models.orthogonal import AgeOfLength

SIZE = 6
METHODS = ("iefp", "none", *CRITICS)


def normal(*shape, seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def critic_of(method, size=SIZE) -> nn.Module:
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
