"""utils/distributed.py in one process, and how two part; how they train is for test_two_processes.py."""

import sys

import pytest
import torch
import torch.distributed as dist
from processes import in_processes

from meta import UserError
from utils.distributed import (
    JOINED,
    DistInfo,
    average,
    barrier,
    choose_device,
    init_distributed,
    leave,
    shutdown_distributed,
)

ALONE = DistInfo(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture
def gpus(monkeypatch):
    """Makes this machine look as if it had so many GPUs."""

    def have(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return have


def test_without_a_gpu_auto_is_the_cpu(gpus):
    gpus(0)
    assert choose_device("auto", local_rank=3) == choose_device("cpu") == torch.device("cpu")


def test_with_gpus_auto_is_the_processes_own_and_a_numbered_one_stays(gpus):
    gpus(2)
    assert [choose_device("auto", rank) for rank in (0, 1)] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert choose_device("cuda", 1) == choose_device("cuda:1", 0) == torch.device("cuda", 1)
    assert choose_device("cpu", 1) == torch.device("cpu")


@pytest.mark.parametrize(("count", "device", "local_rank", "words"), [
    (0, "cuda", 0, "--device cuda is not on this machine"), (0, "cuda:0", 0, "--device cuda:0 is not on this machine"),
    (2, "cuda:2", 0, "cuda:2 is not on this machine, which has 2 GPUs"),
    (2, "auto", 2, "cuda:2 is not on this machine, which has 2 GPUs"),
    (2, "mps", 0, "--device mps is not on this machine"), (0, "tpu", 0, "--device tpu is no device"),
    (2, "cuda:x", 0, "--device cuda:x is no device"), (0, "", 0, "is no device"),
])  # fmt: skip
def test_a_device_that_is_not_there_is_refused_in_one_sentence(gpus, count, device, local_rank, words):
    gpus(count)
    with pytest.raises(UserError) as refused:
        choose_device(device, local_rank)
    assert words in str(refused.value) and "\n" not in str(refused.value) and ": " in str(refused.value)


@pytest.mark.parametrize("environment", [{}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}])
def test_a_process_alone_joins_no_group_with_or_without_torchrun(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    process = init_distributed("cpu")
    assert process == ALONE and process.is_first
    assert not dist.is_initialized()
    barrier(process)
    shutdown_distributed(process)


def test_values_are_averaged_over_processes_and_left_as_they_were(monkeypatch):
    values = torch.tensor([1.0, float("nan")])
    torch.testing.assert_close(average(values, ALONE), values.clone(), rtol=0, atol=0, equal_nan=True)
    monkeypatch.setattr(dist, "all_reduce", lambda values: values.add_(torch.tensor([3.0, 5.0])))  # the other's
    values, second = torch.tensor([1.0, 1.0]), DistInfo(rank=1, world_size=2, device=torch.device("cpu"))
    mean = average(values, second)
    assert mean.tolist() == [2.0, 3.0] and values.tolist() == [1.0, 1.0] and not second.is_first


def leave_the_group_and_forget_the_process() -> None:
    shutdown_distributed(init_distributed("cpu"))
    assert len(JOINED) == 1 and sys.getrefcount(JOINED[0]) <= 2  # the list's and getrefcount's: nothing else holds it
    leave(0)


def test_a_group_that_was_left_stays_until_the_process_ends():
    ended = in_processes(2, leave_the_group_and_forget_the_process)
    assert ended.statuses == [0, 0], ended.err
