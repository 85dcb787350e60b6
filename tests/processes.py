"""One or two processes that know each other as torchrun's do, forked from a server (process_server.py) with torch.

Each takes a second where torchrun takes five. That train.py works under torchrun itself is for
tests/training/test_survival.py.
"""

import multiprocessing.connection
import os
import runpy
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import process_server
import torch
import torch.distributed as dist
from scripts import ROOT, load_script

from utils.cli import parse_config, run_script

SECONDS = 120  # until processes that do not end are killed
ENDS = (0, 143)  # after a request to stop train.py ends with 143


class Ended(NamedTuple):
    """What came of them: the exit status of each, minus the signal's number where one was killed."""

    statuses: list[int]
    out: str
    err: str


def in_processes(count: int, work: Callable, *given: object) -> Ended:
    """work(*given) in each of `count` processes; it must be a module's function, and what is given can be pickled.

    Where one fails the others are killed, as torchrun would do: they would wait for it.
    """
    return process_server.ask(count, work, given)


def run(count: int, work: Callable, given: tuple) -> Ended:
    """What `in_processes` returns, in the process that forks them."""
    context = multiprocessing.get_context("fork")
    folder = tempfile.mkdtemp()  # and no TemporaryDirectory, which the forked ones would remove at their exit
    try:
        reply = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        processes = [
            context.Process(target=_enter, args=(reply | {"RANK": rank, "LOCAL_RANK": rank}, folder, work, given))
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        while alive := [process for process in processes if process.exitcode is None]:
            ended = multiprocessing.connection.wait([process.sentinel for process in alive], timeout=SECONDS)
            if not ended or any(process.exitcode not in (None, *ENDS) for process in processes):
                for process in alive:
                    process.kill()
                    process.join()
        texts = [
            "".join(path.read_text() for path in sorted(Path(folder).glob(f"{name}_*"))) for name in ("out", "err")
        ]
    finally:
        shutil.rmtree(folder)
    return Ended([process.exitcode for process in processes], *texts)


def run_program(name: str, count: int, *flags: object) -> Ended:
    """`name`.py as a program in `count` processes; it must come to its end."""
    ended = in_processes(count, _as_program, name, list(map(str, flags)))
    assert ended.statuses == [0] * count, (ended.statuses, ended.err[-3000:])
    return ended


def train_with(before_step: Callable[[int], None], flags: list[str]) -> None:
    """train.py with these flags in this process; before_step(number) is called before each step, from 1 on."""
    train, steps = load_script("train"), []
    step_of_stage = train.IdentityStage.step

    def step(self, batch):
        steps.append(1)
        before_step(len(steps))
        return step_of_stage(self, batch)

    train.IdentityStage.step = step
    sys.argv = ["train.py", *flags]
    run_script(lambda: train.train(parse_config(train.TrainConfig)))


def assert_equal_everywhere(parameters: Iterable[torch.Tensor]) -> None:
    """All processes of the group have the same, to the bit."""
    for parameter in parameters:
        everyones = [torch.empty_like(parameter) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, parameter.detach().contiguous())
        assert torch.equal(*everyones)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _as_program(name: str, flags: list[str]) -> None:
    sys.argv = [f"{name}.py", *flags]
    runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")


def _enter(environment: dict[str, object], folder: str, work: Callable, given: tuple) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(f"{folder}/{name}_{environment['RANK']}", os.O_WRONLY | os.O_CREAT), stream.fileno())
    work(*given)


for script in ("train", "test"):  # with all that they import, so that the server has it
    load_script(script)
