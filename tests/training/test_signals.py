"""Ctrl-C and SIGTERM while other processes take part (data workers, pools), and in a validation."""

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from conftest import identity_flags
from processes import _as_program, in_processes
from test_train import read_log, training_set
from torch.utils.data import DataLoader, Dataset, dataloader

from meta import TRAINING_SETS
from training import stopping
from training.validation import Validation
from utils.distributed import DistInfo
from utils.worker_processes import started

WAIT_SECONDS = 60


def signal_group(number: int) -> None:
    """Sends a signal to every process of this one's group, from a process that is not among them."""
    send = f"import os; os.killpg({os.getpgrp()}, {int(number)})"
    subprocess.run([sys.executable, "-c", send], start_new_session=True, check=True)
    time.sleep(0.5)  # whoever ends by it has ended


def leader(name: str, flags: list, number: int, method: str = "fork") -> None:
    """A script as the leader of a group, signalled when the second batch, or after a pool's first result, is due."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    multiprocessing.set_start_method(method, force=True)
    next_batch, map_in_pool, asked = dataloader._BaseDataLoaderIter.__next__, ProcessPoolExecutor.map, []

    def next_then_signal(self):
        asked.append(1)
        if len(asked) == 2:
            signal_group(number)
        return next_batch(self)

    def map_then_signal(self, *given, **how):
        outcomes = map_in_pool(self, *given, **how)

        def again():
            yield next(outcomes)
            signal_group(number)
            yield from outcomes

        return again()

    dataloader._BaseDataLoaderIter.__next__, ProcessPoolExecutor.map = next_then_signal, map_then_signal
    _as_program(name, list(map(str, flags)))


# ----------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("number", "status", "method", "workers"), [(signal.SIGTERM, 143, "fork", 2), (signal.SIGINT, 130, "forkserver", 1)]
)
def test_a_signal_to_the_group_lets_a_run_with_workers_save_and_leave(
    tiny_faces, age_weights, tmp_path, number, status, method, workers
):
    """10: workers outlive SIGTERM and SIGINT, as `timeout`, Slurm, systemd and a terminal send them."""
    flags = [*identity_flags(tiny_faces, age_weights), "--run-folder", tmp_path / "run", "--workers", workers]
    ended = in_processes(1, leader, "train", [*flags, "--epochs", 2], number, method)
    assert ended.statuses == [status], ended.err[-3000:]
    assert f"asked to stop (signal {int(number)}) after step 2; saved" in ended.out and "Traceback" not in ended.err
    assert (tmp_path / "run" / "checkpoints" / "step_00000002.pth").is_file()


def wait_until(is_so) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < end, "it has not come true"
        time.sleep(0.05)


def test_signals_within_two_seconds_are_one_request(monkeypatch):
    """10: `timeout` sends SIGTERM to the process and to its group, so one request may come twice."""
    now, ended = [100.0], []
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stopping.os, "_exit", ended.append)
    stop = stopping.StopRequest(DistInfo(0, 1, torch.device("cpu")))
    try:
        for seconds, number, ends in ((0, 15, []), (0.5, 15, []), (1.9, 2, []), (2.5, 2, [130])):
            now[0] = 100.0 + seconds
            os.kill(os.getpid(), number)
            assert (stop.status(), ended) == (143, ends)
    finally:
        stop.restore()


# ------------------------------------------------------------------------------------------------------ other scripts


@pytest.fixture
def flags_of(tiny_faces, weights, age_weights, tmp_path) -> dict[str, list]:
    """What makes each script start two workers, and give them more than two batches, or chunks of a pool."""
    many = tmp_path / "many" / TRAINING_SETS["ms1mv3"].folder
    picture = next(training_set(tiny_faces).rglob("*.jpg")).read_bytes()
    for i in range(600):
        path = many / f"person_{i % 2}" / f"{i}_age_20.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    two = ["--workers", 2]
    return {
        "test": ["--weights", weights, "--face-dataset", tiny_faces, "--benchmarks", "calfw", "--batch-size", 4,
                 "--output", tmp_path / "results", "--device", "cpu", "--no-keep-embeddings", *two],
        "embed": [many, "--weights", weights, "-o", tmp_path / "e.npz", "--batch-size", 4, "--device", "cpu", *two],
        "prepare check": ["check", "ms1mv3", "--face-dataset", tmp_path / "many", *two],
        "prepare synthetic": ["synthetic", "--output", tmp_path / "drawn", "--num-people", 5,
                              "--pictures-per-person", 8, *two],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "number"),
    [("test", signal.SIGTERM), ("embed", signal.SIGINT), ("prepare check", signal.SIGINT),
     ("prepare synthetic", signal.SIGINT)],
)  # fmt: skip
def test_a_signal_to_the_group_ends_a_script_with_workers_without_tracebacks(flags_of, name, number):
    """10: Ctrl-C is one sentence and status 130; SIGTERM ends the script as it ends any program."""
    ended = in_processes(1, leader, name.split()[0], flags_of[name], number)
    assert ended.statuses == [130 if number == signal.SIGINT else -signal.SIGTERM], ended.err[-3000:]
    assert "Traceback" not in ended.err, ended.err[-3000:]
    assert ended.err.count("interrupted") == (number == signal.SIGINT)


class Holding(Dataset):
    """Whoever reads it holds a lock on the file for as long as it lives."""

    def __init__(self, lock: str):
        self.lock = lock

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> int:
        HELD.append(open(self.lock))  # noqa: SIM115
        fcntl.flock(HELD[-1], fcntl.LOCK_SH)
        return i


HELD = []


def die_beside_workers(method: str, workers: int, lock: str) -> None:
    """Kills itself when its workers have begun."""
    multiprocessing.set_start_method(method, force=True)
    for _ in started(DataLoader(Holding(lock), num_workers=workers)):
        with open(lock) as file:
            assert not is_free(file)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("forkserver", 1)])
def test_workers_end_with_a_parent_that_is_killed(tmp_path, method, workers):
    """10: nobody can ask them to, and they take no SIGTERM of others."""
    lock = tmp_path / "lock"
    lock.touch()
    ended = in_processes(1, die_beside_workers, method, workers, str(lock))
    assert ended.statuses == [-signal.SIGKILL], ended.err
    with open(lock) as file:
        wait_until(lambda: is_free(file))


def is_free(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------- a validation


def test_a_request_to_stop_in_a_validation_is_no_failure_of_it(train_identity, tiny_faces, tmp_path, monkeypatch):
    """9: it said "validation failed, training goes on", and ended; one before the first step did not end at all."""
    score, requests = Validation._score, [signal.SIGTERM, signal.SIGINT]

    def score_when_asked(self, *given):
        if requests:
            os.kill(os.getpid(), requests.pop())  # noted, and seen at the next batch
        return score(self, *given)

    monkeypatch.setattr(Validation, "_score", score_when_asked)
    flags = ("--epochs", 1, "--validate-every", 3, "--validate-on", "fgnet", "--face-dataset", tiny_faces)
    for attempt, number in ((1, signal.SIGINT), (2, signal.SIGTERM)):  # the second, as the resumed run makes up for it
        stopped = train_identity(tmp_path / "run", *flags)
        assert stopped.status == 128 + number
        assert "validation at step 3 is left, since the run was asked to stop" in stopped.out
        assert f"asked to stop (signal {int(number)}) after step 3; saved" in stopped.out
        assert "failed" not in stopped.out and "training goes on" not in stopped.out
        assert not (tmp_path / "run" / "iefp.pth").exists()
        events = [event["event"] for event in read_log(tmp_path / "run")]
        assert events.count("validation_stopped") == attempt and "validation_failed" not in events
    resumed = train_identity(tmp_path / "run", *flags)
    assert resumed.status == 0 and "validation at step 3, fgnet" in resumed.out
