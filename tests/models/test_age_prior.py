"""The age prior: known-good numbers, and gradients of every margin head with it held to autograd of a plain version."""

import json

import numpy as np
import pytest
import torch
from reference import log_prior
from scripts import ROOT
from test_sharded_margin import BATCH, IDENTITIES, PLAIN, alone, head_of, in_threads, normal, share
from torch.nn import functional as F

from models.margin import MARGINS, AgePrior, CosFace
from models.sharded_margin import ShardedMarginLoss

GOLDEN = np.load(ROOT / "tests" / "golden" / "age_prior.npz")
NUMBERS = json.loads((ROOT / "tests" / "golden" / "age_prior.json").read_text())
IDENTITIES_OF, AGES = np.arange(40) % (IDENTITIES - 1), np.arange(40) * 13 % 70  # of the last person no picture
AGES[::7] = -1
BATCH_AGES = torch.tensor([3, 3, -1, 66, 0, 120, 12, 3, 40, -1, 41, 8])
STRENGTH = 1.5


# --------------------------------------------------------------------------------------------- known-good numbers


def of_golden(**more) -> AgePrior:
    return AgePrior(GOLDEN["identities"], GOLDEN["ages"], NUMBERS["num_identities"], **more)


def test_the_log_prior_is_the_known_one_and_0_where_the_age_is_unknown():
    found = of_golden().log_prior(torch.tensor([*range(101), -1]))
    assert found.shape == (102, NUMBERS["num_identities"]) and not found[-1].any()
    np.testing.assert_allclose(found[:-1], GOLDEN["log_prior"], rtol=1e-6)


def test_the_loss_is_the_known_one_for_every_strength():
    head = CosFace(NUMBERS["num_identities"], NUMBERS["scale"], NUMBERS["margin"], size=48).double()
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(GOLDEN["weight"]))
    features, labels, ages = (torch.from_numpy(GOLDEN[name]) for name in ("features", "labels", "batch_ages"))
    for strength, expected in NUMBERS["loss_by_strength"].items():
        head.age_prior = of_golden(strength=float(strength))
        assert head.loss(features, labels, ages=ages).item() == pytest.approx(expected, rel=1e-6)
    head.age_prior = None
    assert head.loss(features, labels, ages=ages).item() == pytest.approx(NUMBERS["loss_by_strength"]["0.0"], rel=1e-6)


# ---------------------------------------------------------------------------------------------------- plain version


def plain_prior() -> torch.Tensor:
    """(N, identities) of the batch's ages."""
    rows = [log_prior(int(age), IDENTITIES_OF, AGES, IDENTITIES) for age in BATCH_AGES]
    return torch.tensor(rows, dtype=torch.float64)


def with_prior(margin, own=None):
    head = head_of(margin, own)
    head.age_prior = AgePrior(IDENTITIES_OF, AGES, IDENTITIES, own=own, strength=STRENGTH)
    return head


@pytest.fixture
def batch():
    return normal(BATCH, 6, seed=1, scale=8.0), torch.tensor([0, 1, 5, 5, 10, 2, 0, 7, 3, 3, 10, 4])


@pytest.mark.parametrize("margin", MARGINS)
def test_every_head_has_the_loss_and_the_gradients_of_the_plain_version(margin, batch):
    head, (features, labels) = with_prior(margin), batch
    features, options = features.requires_grad_(), {}
    ours = head.loss(features, labels, ages=BATCH_AGES)
    if margin == "adaface":  # the running lengths after this batch, by which its margins go
        options = {"mean": head.length_mean.item(), "deviation": head.length_deviation.item()}
    logits = PLAIN[margin](features, head.weight, labels, **options) + STRENGTH * plain_prior()
    theirs = F.cross_entropy(logits, labels)
    for one, other in zip(*(
        (loss, *torch.autograd.grad(loss, (features, head.weight))) for loss in (ours, theirs)
    ), strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # the table is of 32 bits
    assert abs(theirs - F.cross_entropy(logits - STRENGTH * plain_prior(), labels)) > 0.01


@pytest.mark.parametrize(("world_size", "rate"), [(1, 1.0), (2, 1.0), (3, 1.0), (1, 0.8), (2, 0.8)])
def test_shards_and_samples_are_the_plain_version_on_their_columns(world_size, rate, batch):
    """Each shard holds its own columns of a prior that is normalised over all people; a sample takes columns out."""
    features, labels = batch

    def part(rank, collectives):
        head = with_prior("cosface", share(rank, world_size))
        rows = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
        own = features[rows].clone().requires_grad_()
        loss_of = ShardedMarginLoss(head, collectives, rate)
        loss = loss_of(own, labels[rows], 7, BATCH_AGES[rows])
        loss.backward()
        present = labels[(labels >= head.own.start) & (labels < head.own.stop)] - head.own.start
        kept = loss_of.sample(present, 7) if rate < 1 else torch.arange(len(head.own))
        return loss.detach(), own.grad / world_size, head.weight.grad.to_dense(), kept + head.own.start

    losses, of_features, of_weight, kept = zip(*in_threads(world_size, part), strict=True)
    kept, whole, given = torch.cat(kept), head_of("cosface"), features.requires_grad_()
    assert len(kept) == IDENTITIES if rate == 1 else len(labels.unique()) <= len(kept) < IDENTITIES
    places = torch.searchsorted(kept, labels)
    logits = PLAIN["cosface"](given, whole.weight[kept], places) + STRENGTH * plain_prior()[:, kept]
    loss = F.cross_entropy(logits, places)
    loss.backward()
    for one in losses:
        torch.testing.assert_close(one, loss.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.cat(of_features), given.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.cat(of_weight), whole.weight.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["whole", "shard"])
def test_still_one_matrix_of_batch_and_identities_is_kept(kind, batch):
    """The prior is added to the logits in place; its table is no parameter, no buffer, and gets no gradient."""
    head, (features, labels), kept = with_prior("arcface"), batch, []
    loss_of = head.loss if kind == "whole" else ShardedMarginLoss(head, alone())
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss_of(features.requires_grad_(), labels, ages=BATCH_AGES)
    assert sum(tensor.shape == (BATCH, IDENTITIES) for tensor in kept) == 1
    assert list(head.state_dict()) == ["weight"] and list(head.buffers()) == []
    assert not head.age_prior.table.requires_grad


def test_a_lone_picture_and_an_age_far_from_all_others_give_finite_numbers():
    prior = AgePrior([1], [90], 3, bandwidth=0.5)
    found = prior.log_prior(torch.tensor([90, 0]))
    assert found[0].exp().tolist() == pytest.approx([1e-3 / 3, 1 + 1e-3 / 3, 1e-3 / 3])
    assert found[1].exp().tolist() == pytest.approx([1e-3 / 3] * 3)  # too far to see: the floor for everybody
