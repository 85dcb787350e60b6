"""Margin head sharded over processes: held to plain autograd on the whole; two processes are in test_sharded_runs.py.

Shards of one process are threads here that meet at a barrier, so any number of them is tried in a moment.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from reference import adaface, arcface, combined_margin, cosface
from scripts import TINY
from torch.nn import functional as F

from meta import UserError
from models.iefp import IEFP
from models.margin import MARGINS
from models.sharded_margin import ShardedMarginLoss
from training.data_parallel import Collectives
from training.optim import RowwiseSGD
from training.partial_fc import own_identities
from utils.distributed import DistInfo

PLAIN = {"cosface": cosface, "arcface": arcface, "combined": combined_margin, "adaface": adaface}
IDENTITIES, BATCH, SIZE = 11, 12, 6


def normal(*shape, seed=0, scale=1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Meeting:
    """What the threads of one test have in common."""

    def __init__(self, count: int):
        self.barrier, self.values = threading.Barrier(count, timeout=20), [None] * count


class ThreadCollectives:
    def __init__(self, meeting: Meeting, rank: int, world_size: int):
        self.meeting, self.rank, self.world_size = meeting, rank, world_size

    def everyones(self, values):
        self.meeting.values[self.rank] = values
        self.meeting.barrier.wait()
        everyones = list(self.meeting.values)
        self.meeting.barrier.wait()
        return everyones

    def gather(self, rows):
        return torch.cat(self.everyones(rows))

    def own_part(self, rows):
        return self.sum(rows).chunk(self.world_size)[self.rank]

    def sum(self, values):
        return torch.stack(self.everyones(values)).sum(dim=0)

    def maximum(self, values):
        return torch.stack(self.everyones(values)).amax(dim=0)


def in_threads(count: int, part) -> list:
    """part(rank, collectives) of each of `count` shards at once."""
    meeting = Meeting(count)

    def work(rank):
        try:
            return part(rank, ThreadCollectives(meeting, rank, count))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def head_of(margin: str, own: range | None = None):
    head = MARGINS[margin](IDENTITIES, size=SIZE, own=own).double()
    with torch.no_grad():
        head.weight.copy_(normal(IDENTITIES, SIZE, seed=9)[head.own.start : head.own.stop])
    return head


def share(rank: int, world_size: int) -> range:
    return own_identities(IDENTITIES, DistInfo(rank, world_size, torch.device("cpu")))


@pytest.fixture
def batch():
    labels = torch.tensor([0, 1, 5, 5, 10, 2, 0, 7, 3, 3, 10, 4])  # 6, 8 and 9 are not there
    return normal(BATCH, SIZE, seed=1, scale=8.0), labels


def shards_of(margin, world_size, features, labels, rate=1.0, seed=0, step=0):
    """Loss and gradients of each of the shards, the features' as averaging over the processes makes it."""

    def part(rank, collectives):
        head = head_of(margin, share(rank, world_size))
        rows = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
        own = features[rows].clone().requires_grad_()
        loss_of = ShardedMarginLoss(head, collectives, rate, seed)
        loss = loss_of(own, labels[rows], step)
        loss.backward()
        return loss.detach(), own.grad / world_size, head, loss_of

    return in_threads(world_size, part)


# ---------------------------------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize(("world_size", "rate"), [(1, 1.0), (2, 1.0), (3, 1.0), (1, 0.9), (2, 0.9)])
def test_shards_of_any_number_are_plain_autograd_on_the_rows_that_take_part(margin, world_size, rate, batch):
    """In float64 to 1e-9: the loss on every process, all weights' gradients, the features' gradients, the buffers."""
    features, labels = batch
    shards = shards_of(margin, world_size, features, labels, rate, seed=4, step=7)
    whole, options, kept = head_of(margin), {}, torch.arange(IDENTITIES)
    if rate < 1:
        kept = torch.cat([loss_of.sample(labels_of(head, labels), 7) + head.own.start for *_, head, loss_of in shards])
        assert IDENTITIES > len(kept) > len(labels.unique()) and set(labels.tolist()) <= set(kept.tolist())
    if margin == "adaface":
        whole.quality(features)  # the running lengths move by those of the whole batch
        options = {"mean": whole.length_mean.item(), "deviation": whole.length_deviation.item()}
    features, places = features.requires_grad_(), torch.searchsorted(kept, labels)
    loss = F.cross_entropy(PLAIN[margin](features, whole.weight[kept], places, **options), places)
    of_features, of_weight = torch.autograd.grad(loss, (features, whole.weight))
    for shard in shards:
        torch.testing.assert_close(shard[0], loss.detach(), rtol=1e-9, atol=1e-12)
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(shard[2].get_buffer(name), buffer, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([shard[1] for shard in shards]), of_features, rtol=1e-8, atol=1e-10)
    gradients = [shard[2].weight.grad for shard in shards]
    assert all(gradient.is_sparse == (rate < 1) for gradient in gradients)
    dense = torch.cat([gradient.to_dense() for gradient in gradients])
    torch.testing.assert_close(dense, of_weight, rtol=1e-8, atol=1e-10)


def labels_of(head, labels: torch.Tensor) -> torch.Tensor:
    """Those that the head holds, counted from its first."""
    return labels[(labels >= head.own.start) & (labels < head.own.stop)] - head.own.start


def test_one_shard_of_one_process_is_the_heads_own_loss_whatever_the_scale_of_the_loss(batch):
    features, labels = batch
    for factor in (1.0, 1024.0):
        results = []
        for loss_of in (head_of("arcface").loss, ShardedMarginLoss(head_of("arcface"), alone())):
            given = features.clone().requires_grad_()
            (factor * loss_of(given, labels)).backward()
            results.append(given.grad)
        torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def alone() -> Collectives:
    return Collectives(DistInfo(0, 1, torch.device("cpu")))


def test_far_logits_and_a_weight_of_length_0_give_finite_numbers():
    head = head_of("cosface")
    head.scale = 1e4  # exp of it is infinite
    with torch.no_grad():
        head.weight[3] = 0
    features = normal(BATCH, SIZE, seed=3).requires_grad_()
    loss = ShardedMarginLoss(head, alone())(features, torch.arange(BATCH) % IDENTITIES)
    for value in (loss, *torch.autograd.grad(loss, (features, head.weight))):
        assert value.isfinite().all()


def test_one_matrix_of_batch_and_own_identities_is_kept(batch):
    features, labels = batch
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ShardedMarginLoss(head_of("arcface"), alone())(features.requires_grad_(), labels)
    assert sum(tensor.shape == (BATCH, IDENTITIES) for tensor in kept) == 1


# --------------------------------------------------------------------------------------------------------- sample


def test_a_draw_depends_on_seed_step_and_place_alone_and_reaches_every_identity():
    def draw(seed=1, step=0, start=100, present=(3, 3, 40)):
        head = MARGINS["cosface"](1000, size=SIZE, own=range(start, start + 50))
        torch.rand(step)  # the common generator does not matter
        return ShardedMarginLoss(head, alone(), 0.2, seed).sample(torch.tensor(present, dtype=torch.long), step)

    first = draw()
    assert torch.equal(first, draw()) and len(first) == 10 and {3, 40} <= set(first.tolist())
    assert torch.equal(first, first.unique())
    others = [draw(seed=2), draw(step=1), draw(start=150)]
    assert not any(torch.equal(first, other) for other in others)
    times = torch.stack([torch.bincount(draw(step=step), minlength=50) for step in range(400)]).sum(0)
    rest = times[[i for i in range(50) if i not in (3, 40)]]  # each is 1 of 48, 8 of them a step: 66.7 times
    assert times[3] == times[40] == 400 and rest.min() > 30 and rest.max() < 110


@pytest.mark.parametrize(("rate", "present", "count"), [(0.001, 0, 1), (0.001, 7, 7), (0.5, 7, 25), (0.1, 50, 50)])
def test_a_sample_holds_all_that_are_present_and_never_nobody(rate, present, count):
    head = MARGINS["cosface"](50, size=SIZE)
    kept = ShardedMarginLoss(head, alone(), rate).sample(torch.arange(present), 3)
    assert len(kept) == count and set(range(present)) <= set(kept.tolist())


# ------------------------------------------------------------------------------------------- optimiser, shares, start


def naive_steps(weight, gradients, lr=0.1, momentum=0.9, weight_decay=0.01):
    """Each row of each sparse gradient by itself; rows that are not in it stand still."""
    weight, buffer = weight.clone(), torch.zeros_like(weight)
    for rows, values in gradients:
        for row, value in zip(rows.tolist(), values, strict=True):
            buffer[row] = momentum * buffer[row] + value + weight_decay * weight[row]
            weight[row] = weight[row] - lr * buffer[row]
    return weight, buffer


def test_only_rows_with_a_gradient_move_weight_and_momentum_and_others_are_as_with_sgd():
    start, bias = normal(8, 3, seed=1), normal(3, seed=2)
    gradients = [(torch.tensor([1, 4, 6]), normal(3, 3, seed=3)), (torch.tensor([0, 4]), normal(2, 3, seed=4)),
                 (torch.tensor([4, 6]), normal(2, 3, seed=5))]  # fmt: skip
    weight, dense, plain = (torch.nn.Parameter(value.clone()) for value in (start, bias, bias))
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    ours, sgd = RowwiseSGD([dense, weight], fused=True, **settings), torch.optim.SGD([plain], **settings)
    for rows, values in gradients:
        weight.grad = torch.sparse_coo_tensor(rows[None], values, weight.shape, check_invariants=True)
        dense.grad, plain.grad = values[0].clone(), values[0].clone()
        ours.step(), sgd.step()
    expected, buffer = naive_steps(start, gradients)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.state[weight]["momentum_buffer"], buffer, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(dense.detach(), plain.detach(), rtol=1e-12, atol=1e-14)
    assert torch.equal(weight[[2, 3, 5, 7]], start[[2, 3, 5, 7]])


def test_two_sparse_gradients_of_one_step_add_up():
    weight = torch.nn.Parameter(torch.zeros(4, 2))
    first, second = (torch.sparse_coo_tensor(torch.tensor([rows]), torch.ones(2, 2), (4, 2), check_invariants=True)
                     for rows in ([1, 3], [1, 2]))  # fmt: skip
    weight.grad = first + second
    RowwiseSGD([weight], lr=1.0, momentum=0.9, fused=True).step()
    assert weight[:, 0].tolist() == [0, -2, -1, -1]


def test_shares_are_contiguous_whole_and_even():
    for count, world_size in ((11, 3), (93431, 8), (8, 8)):
        shares = [own_identities(count, DistInfo(rank, world_size, torch.device("cpu"))) for rank in range(world_size)]
        assert [i for each in shares for i in each] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    with pytest.raises(UserError, match="--sharded-classes can't share 2 identities out over 3 processes"):
        own_identities(2, DistInfo(0, 3, torch.device("cpu")))


@pytest.mark.parametrize("margin", MARGINS)
def test_shards_start_as_the_rows_of_a_whole_head_and_all_else_starts_alike(margin, monkeypatch):
    monkeypatch.setattr("models.margin.ROWS_DRAWN", 4)
    states = []
    for own in (None, range(5), range(5, 11)):
        torch.manual_seed(3)
        states.append(IEFP(TINY, 1, 11, margin, margin_value=None, own_identities=own).state_dict())
    whole, first, second = states
    assert torch.equal(torch.cat([each.pop("margin_fc.weight") for each in (first, second)]), whole["margin_fc.weight"])
    for key, value in first.items():
        assert torch.equal(value, whole[key]) and torch.equal(value, second[key]), key
