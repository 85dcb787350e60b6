"""Runs of train.py with --sharded-classes by one and two processes (gloo), stopped, killed and gone on with.

    python tests/sharded_runs.py OUTPUT_FOLDER

A program for tests/test_sharded_runs.py: it imports torch once and forks a child for every process of every run, which
takes a second where torchrun takes ten. It leaves the run folders; the tests look at those.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
import torch  # noqa: E402
from golden_weights import fill  # noqa: E402
from kill_and_resume import arm, settings  # noqa: E402
from scripts import load_script  # noqa: E402
from test_train import free_port  # noqa: E402

from data.synthetic import write_training_set  # noqa: E402
from models.iefp import IEFP  # noqa: E402
from models.weights import age_file_tensors  # noqa: E402
from utils.class_shards import whole_weight  # noqa: E402
from utils.distributed import average, start_process  # noqa: E402

train = load_script("train")
IDENTITIES, WHOLE_BATCH = 5, 8
SHORT = {"sharded_classes": True, "epochs": 1, "learning_rate": 0.002, "learning_rate_epochs": (1,)}
ALIKE = {"sync_batchnorm": True, "disentangle": "none"}  # then one process computes what two do


def in_processes(count: int, work) -> list[int]:
    """Forks `count` processes that know each other as torchrun's do; work(rank) gives their exit status.

    Where one is killed the others are too, as torchrun would do: they would wait for it.
    """
    told = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ.update(told | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)})
            status = 1
            try:
                status = work(rank)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(status)
        children.append(child)
    statuses, left = {}, set(children)
    while left:
        child, status = os.wait()
        left.discard(child)
        statuses[child] = os.waitstatus_to_exitcode(status)
        if statuses[child] not in (0, 128 + signal.SIGTERM):
            for other in left:
                os.kill(other, signal.SIGKILL)
    return [statuses[child] for child in children]


def run(
    folder: Path, name: str, processes: int, expected: int = 0, stop_at: int = 0, kill: tuple | None = None, **more
):
    """One run of train.py; `stop_at` sends SIGTERM to the last process at that step, `kill` kills it as planned."""
    config = replace(settings(folder, name), **(SHORT | more))

    def work(rank: int) -> int:
        last, steps = rank == processes - 1, []
        if last and kill:
            arm(*kill)
        step_of_stage = train.IdentityStage.step

        def step(self, batch):
            steps.append(1)
            if last and len(steps) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return step_of_stage(self, batch)

        train.IdentityStage.step = step
        return train.train(config)

    statuses = in_processes(processes, work)
    ends = {0: statuses == [0] * processes, signal.SIGTERM: set(statuses) == {143}}
    assert ends.get(expected, statuses[-1] == -signal.SIGKILL), (name, statuses)


def steps_in_float64(path: Path, processes: int, **more) -> None:
    """Losses and weights of two steps on made-up batches, in float64; the first process saves them."""

    def work(rank: int) -> int:
        process = start_process("cpu")
        config = train.TrainConfig(learning_rate=0.01, sync_batchnorm=True, clip_norm=0.5, **more)
        own = train.own_identities(IDENTITIES, process) if config.sharded_classes else None
        model = IEFP("iresnet18_quarter", 1, IDENTITIES, config.margin, margin_value=None, own_identities=own)
        whole = fill(IEFP("iresnet18_quarter", 1, IDENTITIES, config.margin, margin_value=None)).state_dict()
        whole["margin_fc.weight"] = whole["margin_fc.weight"][model.margin_fc.own.start : model.margin_fc.own.stop]
        model.load_state_dict(whole)
        stage = train.IdentityStage(config, model.double(), process)
        stage.model.train()
        share = WHOLE_BATCH // processes
        part = slice(process.rank * share, (process.rank + 1) * share)
        # CLUB's negatives are drawn within a process's share, so the whole permutation is one of two halves.
        permutation = torch.tensor([3, 0, 1, 2, 7, 4, 5, 6])[:share]
        losses = []
        for step in range(2):
            draw = torch.Generator().manual_seed(step)
            images = torch.rand(WHOLE_BATCH, 3, 112, 112, generator=draw, dtype=torch.float64) * 2 - 1
            identities = torch.randint(0, IDENTITIES, (WHOLE_BATCH,), generator=draw)
            groups = torch.randint(0, 8, (WHOLE_BATCH,), generator=draw)
            out = stage.step(
                train.Batch(images[part], identities[part], groups[part], permutation=permutation, step=step)
            )
            losses.append(average(torch.stack([value.double() for value in out.values()]), process))
        state = dict(stage.model.state_dict())
        if config.sharded_classes:
            state["margin_fc.weight"] = whole_weight(model.margin_fc.weight, IDENTITIES, process)
        if process.is_first:
            torch.save({"losses": torch.stack(losses), "state": state}, path)
        return 0

    assert in_processes(processes, work) == [0] * processes


def overflow_on_the_last(path: Path) -> None:
    """Steps in fp16 whose gradient overflows in the rows of the last process alone; each saves what came of them."""

    def step(process, rate: float) -> dict[str, float | bool]:
        config = train.TrainConfig(sharded_classes=True, class_sampling_rate=rate, precision="fp16", disentangle="none")
        own = train.own_identities(IDENTITIES, process)
        model = fill(IEFP("iresnet18_quarter", 1, IDENTITIES, own_identities=own))
        stage = train.IdentityStage(config, model, process)
        before = {key: value.clone() for key, value in model.named_parameters()}
        if process.rank == 1:
            model.margin_fc.weight.register_hook(lambda gradient: gradient * torch.inf)
        images = torch.rand(4, 3, 112, 112, generator=torch.Generator().manual_seed(process.rank)) * 2 - 1
        stage.step(train.Batch(images, torch.arange(4), torch.zeros(4, dtype=torch.long)))
        same = all(torch.equal(value, before[key]) for key, value in model.named_parameters())
        return {"scale": stage.scaler.get_scale(), "same": same}

    def work(rank: int) -> int:
        process = start_process("cpu")
        torch.save([step(process, rate) for rate in (1.0, 0.5)], path.with_name(f"{path.name}_{rank}.pth"))
        return 0

    assert in_processes(2, work) == [0, 0]


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # no thread may exist when a child is forked
    write_training_set(folder / "faces", 7, 4, seed=0, progress=False)
    torch.manual_seed(5)
    torch.save(age_file_tensors(IEFP("iresnet18_quarter", 1, None)), folder / "age.pth")

    steps_in_float64(folder / "one.pth", 1)
    steps_in_float64(folder / "two.pth", 2, sharded_classes=True)
    overflow_on_the_last(folder / "overflow")

    run(folder, "sharded", 2, **ALIKE, save_every=2, keep_checkpoints=1, best_metric="face_recognition_loss")
    run(folder, "moving", 2, signal.SIGTERM, stop_at=1, **ALIKE)
    run(folder, "moving", 1, signal.SIGTERM, stop_at=1, **ALIKE)
    run(folder, "moving", 2, **ALIKE)

    sampled = {"class_sampling_rate": 0.5, "margin": "adaface"}
    run(folder, "sampled", 2, **sampled)
    run(folder, "sampled_parts", 2, signal.SIGKILL, kill=("before a rename", 4, 0), **sampled)
    run(folder, "sampled_parts", 2, **sampled)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
