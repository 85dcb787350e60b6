"""Processes on several machines: age caches of their own, waits of unknown length.

They are forked processes that believe, by LOCAL_WORLD_SIZE as torchrun sets it, that they stand on several machines.
"""

import os
import shutil
import signal
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import identity_flags
from processes import in_processes
from scripts import load_script

from data.age_cache import DATA, AgeCache, prepare_cache
from data.faces import index_identity_folders
from data.loaders import batches
from training import setup, state
from training.age_feature_cache import fill_age_cache, open_age_cache
from training.config import TrainConfig
from training.state import Run
from training.stopping import StopRequest
from utils import distributed
from utils.cli import parse_config, run_script
from utils.distributed import DistInfo, barrier, gather_lists, init_distributed

NUM_PICTURES = 18


@pytest.fixture
def flags(tiny_faces, age_weights) -> list[str]:
    """All but --run-folder and --cache-folder."""
    return identity_flags(tiny_faces, age_weights)


def cache_of(folder: Path) -> AgeCache:
    (data,) = folder.glob(f"*/{DATA}")
    return AgeCache(data.parent, NUM_PICTURES)


def age_features_of(images: torch.Tensor) -> torch.Tensor:
    """A network that is quick: (N, 3, 112, 112) -> (N, 512)."""
    return images[:, 0, 0, :8].repeat(1, 64) + 2


def fill_on_a_machine(folder: Path, flags: list[str], processes: int = 1, stops: bool = False) -> None:
    """train.fill_age_cache as one of so many processes on one of two machines; writes how many pictures it computed.

    With `stops` the last process gets SIGTERM as soon as it has computed some.
    """
    rank = int(os.environ["RANK"])
    os.environ["LOCAL_WORLD_SIZE"] = str(processes)
    computed = []

    def age_features(images: torch.Tensor) -> torch.Tensor:
        if stops and rank == 2 * processes - 1 and not computed:
            os.kill(os.getpid(), signal.SIGTERM)
        computed.append(len(images))
        return age_features_of(images)

    def fill() -> int:
        config, process = parse_config(TrainConfig), init_distributed("cpu")
        index = setup.open_pictures(config, process)
        model = setup.make_model(config, 1, setup.read_weights(config), process)
        cache = open_age_cache(config, model, index, process)
        if cache is None:
            return 0
        stage = SimpleNamespace(age_features=age_features)
        run = Run(config, process, index, stage, None, age_cache=cache, stop=StopRequest(process))
        status = fill_age_cache(run)
        barrier(process)
        (folder / f"computed_{rank}").write_text(str(sum(computed)))
        return status

    sys.argv = ["train.py", *flags, "--age-cache", "ahead", "--cache-folder", f"{folder}/cache_{rank // processes}"]
    run_script(fill)


def test_a_machine_with_a_full_cache_waits_for_one_with_a_new_one_and_both_train(flags, tmp_path):
    """2a: ahead filled half of each machine's cache; the machine with a full one trained alone, and both hung."""
    assert in_processes(2, fill_on_a_machine, tmp_path, flags).statuses == [0, 0]
    shutil.rmtree(tmp_path / "cache_1")
    more = ["--epochs", "1", "--age-cache", "ahead", "--run-folder", str(tmp_path / "run")]
    of_each = [["--cache-folder", str(tmp_path / f"cache_{node}")] for node in range(2)]
    ended = in_processes(2, train_on_a_machine, flags + more, of_each)
    assert ended.statuses == [0, 0] and (tmp_path / "run" / "iefp.pth").exists(), ended.err[-3000:]
    for node, found in enumerate(("age features of earlier epochs or runs are used:", "age features are kept in")):
        assert f"{found} {tmp_path}/cache_{node}/" in ended.out
        assert len(cache_of(tmp_path / f"cache_{node}").unknown()) == 0


def test_processes_share_a_machines_pictures_out_and_all_stop_together(flags, tmp_path):
    """2a: ahead with two processes on each of two machines; a request to one ends all four, and what is done stays."""
    flags += ["--batch-size", "8"]
    stopped = in_processes(4, fill_on_a_machine, tmp_path, flags, 2, True)
    assert stopped.statuses == [143] * 4 and "age features so far are cached" in stopped.out, stopped.err[-3000:]
    for node in range(2):
        assert len(cache_of(tmp_path / f"cache_{node}").unknown()) == NUM_PICTURES - 4  # a batch of 2 of each process
    ended = in_processes(4, fill_on_a_machine, tmp_path, flags, 2)
    assert ended.statuses == [0] * 4, ended.err[-3000:]
    for rank in range(4):
        assert int((tmp_path / f"computed_{rank}").read_text()) == 2 * (NUM_PICTURES - 4) // 2
    assert [len(cache_of(tmp_path / f"cache_{node}").unknown()) for node in range(2)] == [0, 0]


def test_a_machine_without_room_has_all_go_on_without_a_cache(flags, tmp_path):
    """2a: all decide together."""
    (tmp_path / "cache_1").symlink_to("/proc")  # where nobody, not even root, may make a folder
    ended = in_processes(2, fill_on_a_machine, tmp_path, flags)
    assert ended.statuses == [0, 0], ended.err[-3000:]
    assert ended.out.count("training goes on without; --cache-folder gives a place") == 1
    assert "on every machine" in ended.out
    assert not list(tmp_path.glob("computed_*"))


def test_a_machine_learns_each_picture_once_in_whatever_batch_it_comes(flags, tmp_path, monkeypatch):
    """2a: with auto the known rows of a batch are used, so that a machine's later epochs compute ever less."""
    train, computed = load_script("train"), []
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    config, process = parse_config(TrainConfig), DistInfo(0, 2, torch.device("cpu"), num_nodes=2)
    index = index_identity_folders(config.train_data, None)
    cache = prepare_cache(tmp_path, "age_features", {}, len(index), print)
    sampler = setup.make_sampler(config, index, process)  # half of each whole batch
    loader = setup.make_loader(config, index, sampler, process, cache)
    stage = SimpleNamespace(age_features=lambda images: computed.append(len(images)) or age_features_of(images))
    run = Run(config, process, index, stage, sampler, age_cache=cache)
    seen, counts = set(), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for step, faces in enumerate(batches(loader)):
            batch = train.prepare(run, faces, step)
            assert torch.equal(batch.age_features, age_features_of(batch.images).half().float())
            seen.update(faces.indices.tolist())
        counts.append(sum(computed))
        assert counts[-1] == 2 * len(seen) == 2 * (NUM_PICTURES - len(cache.unknown()))
    assert counts[0] == NUM_PICTURES < counts[1] and any(size < 3 for size in computed)


# ----------------------------------------------------------------------------------------- what machines must share


REFUSED = ({2}, {2, -9})  # of two processes the one that is a little later may be killed, as torchrun would do


def train_on_a_machine(flags: list[str], of_each: list[list[str]]) -> None:
    """train.py on a machine of its own, with flags of its own."""
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    train, state.SECONDS_UNTIL_SEEN = load_script("train"), 0.5
    sys.argv = ["train.py", *flags, *of_each[int(os.environ["RANK"])]]
    run_script(lambda: train.train(parse_config(train.TrainConfig)))


@pytest.mark.parametrize(
    ("of_each", "words"),
    [([["--seed", "1"], ["--seed", "2"]], "--seed is 1 in process 0 and 2 in process 1"),
     ([["--age-cache", "ahead"], ["--age-cache", "off"]], "--age-cache is ahead in process 0 and off in process 1"),
     ([["--epochs", "2"], []], "--epochs is 2 in process 0")],
)  # fmt: skip
def test_machines_with_other_flags_end_with_one_sentence(flags, of_each, words):
    """1b, 2: they trained apart in silence, or waited for each other for hours."""
    ended = in_processes(2, train_on_a_machine, flags, of_each)
    assert set(ended.statuses) in REFUSED and words in ended.err, ended.err[-3000:]


def test_a_run_folder_that_machines_do_not_share_is_found_at_the_start(flags, tmp_path):
    """2b: it was found at the first checkpoint, or only when the run was resumed."""
    each = [["--run-folder", str(tmp_path / f"run_{rank}")] for rank in range(2)]
    ended = in_processes(2, train_on_a_machine, flags, each)
    assert set(ended.statuses) in REFUSED and "is not the same folder for process 0 and process 1" in ended.err
    assert not list(tmp_path.glob("run_*/*"))


# ------------------------------------------------------------------------------------------------------------- waits


def test_waits_of_unknown_length_go_through_the_group_of_the_cpu_which_has_hours(monkeypatch):
    """2c: on GPUs processes waited in NCCL's barrier, ten minutes, while the first listed pictures or scored."""
    made, waited = {}, []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(distributed, "choose_device", lambda *given: torch.device("cuda", 0))
    monkeypatch.setattr(distributed, "JOINED", [])
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(dist.HashStore(), 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **how: made.update({backend: how["timeout"]}))
    monkeypatch.setattr(dist, "new_group", lambda backend, timeout: made.update({backend: timeout}) or "of the CPU")
    monkeypatch.setattr(dist, "barrier", lambda group=None: waited.append(group))
    monkeypatch.setattr(dist, "all_gather_object", lambda everyones, own, group=None: waited.append(group))
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    process = init_distributed("cuda")
    assert made == {"nccl": timedelta(minutes=10), "gloo": timedelta(hours=24)}
    barrier(process)
    with pytest.raises(TypeError):  # nobody filled the lists
        gather_lists([1], process)
    assert waited == ["of the CPU"] * 2


def print_timeout() -> None:
    group = init_distributed("cpu").cpu_group
    print("hours:", group._get_backend(torch.device("cpu")).options._timeout / timedelta(hours=1))
    distributed.leave(0)


def test_on_cpus_that_group_has_hours_too():
    """2c: gloo's own default is half an hour."""
    ended = in_processes(2, print_timeout)
    assert ended.statuses == [0, 0] and ended.out.count("hours: 24.0") == 2, ended.err[-3000:]


@pytest.mark.parametrize(("rank", "node", "local_rank"), [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)])
def test_a_process_knows_its_place_on_its_machine(rank, node, local_rank):
    process = DistInfo(rank, 4, torch.device("cpu"), node=node, num_nodes=2)
    assert (process.processes_of_node, process.local_rank) == (2, local_rank)
    assert process.is_first_of_node == (local_rank == 0)
