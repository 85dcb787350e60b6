"""training/data_parallel.py in one process; how several train is for test_two_processes.py."""

import torch
from torch import nn

from training.data_parallel import Collectives, wrap_ddp
from utils.distributed import DistInfo

ALONE = DistInfo(rank=0, world_size=1, device=torch.device("cpu"))


def test_alone_a_module_stays_itself_also_with_synchronised_batchnorm():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert wrap_ddp(module, ALONE, sync_batchnorm=True) is module
    assert type(module[1]) is nn.BatchNorm1d


def test_alone_every_collective_gives_its_value_back():
    collectives, rows = Collectives(ALONE), torch.randn(3, 2, generator=torch.manual_seed(0))
    for operation in (collectives.gather, collectives.own_part, collectives.sum, collectives.maximum):
        assert torch.equal(operation(rows), rows)
