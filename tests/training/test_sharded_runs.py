"""--sharded-classes in train.py: two processes as one, checkpoints of shards, another number of processes, damage."""

import dataclasses
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from golden_weights import fill
from kill_and_resume import arm, settings
from processes import in_processes
from scripts import TINY, load_script
from test_train import read_log, same_weights

from data.synthetic.sets import write_training_set
from meta import UserError
from models.iefp import IEFP
from models.weights import age_file_tensors, load_for_embedding
from training.checkpoint import list_checkpoints, load_checkpoint, read_rows, save_checkpoint, save_shard, shard_path
from training.partial_fc import load_with_rows, own_identities
from utils.distributed import DistInfo, init_distributed, leave, shutdown_distributed

ALONE = DistInfo(0, 1, torch.device("cpu"))
SHARDED = ("--sharded-classes", "--epochs", 2, "--learning-rate-epochs", 1)


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def readings(run_folder: Path) -> list[tuple[float, float]]:
    events = [event for event in read_log(run_folder) if event["event"] == "train"]
    return [(event["face_recognition_loss"], event["gradient_norm"]) for event in events]


# ------------------------------------------------------------------------------------------------- two processes
#
# That their steps are those of one process in float64 is asked by tests/training/test_two_processes.py.

SHORT = {"sharded_classes": True, "epochs": 1, "learning_rate": 0.002, "learning_rate_epochs": (1,)}
ALIKE = {"sync_batchnorm": True, "disentangle": "none"}  # then one process computes what two do


def run_part(config, stop_at: int, kill: tuple | None) -> None:
    """One process of a run of train.py; `stop_at` has the last one send itself SIGTERM, `kill` kills it as planned."""
    train, last = load_script("train"), os.environ["RANK"] == str(int(os.environ["WORLD_SIZE"]) - 1)
    if last and kill:
        arm(*kill)
    step_of_stage, steps = train.IdentityStage.step, []

    def step(self, batch):
        steps.append(1)
        if last and len(steps) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_of_stage(self, batch)

    train.IdentityStage.step = step
    leave(train.train(config))


@pytest.fixture
def run(tmp_path):
    """Runs train.py in so many processes, in a run folder of this name."""
    write_training_set(tmp_path / "faces", 7, 4, seed=0, progress=False)
    torch.manual_seed(5)
    torch.save(age_file_tensors(IEFP(TINY, 1, None)), tmp_path / "age.pth")

    def run(name: str, processes: int, stop_at: int = 0, kill: tuple | None = None, **more) -> None:
        config = dataclasses.replace(settings(tmp_path, name), **(SHORT | more))
        ended = in_processes(processes, run_part, config, stop_at, kill)
        expected = [-signal.SIGKILL] if kill else [128 + signal.SIGTERM if stop_at else 0] * processes
        assert ended.statuses[-len(expected) :] == expected, ended.err[-3000:]

    return run


def test_runs_agree_across_numbers_of_processes_and_shards_stand_beside_their_checkpoints(run, tmp_path):
    run("sharded", 2, **ALIKE, save_every=2, keep_checkpoints=1, best_metric="face_recognition_loss")
    run("moving", 2, stop_at=1, **ALIKE)
    run("moving", 1, stop_at=1, **ALIKE)
    run("moving", 2, **ALIKE)
    fp32_runs_agree_across_numbers_of_processes(tmp_path)
    shards_stand_beside_their_checkpoints_and_the_best_one(tmp_path / "sharded")


def fp32_runs_agree_across_numbers_of_processes(folder: Path):
    """Three steps of train.py: the first to 1e-5 relative, then losses to 1e-3 and gradient norms to 1e-2.

    In float64 steps agree to 1e-9; what rounding does grows with every step of an untrained network.
    """
    whole = readings(folder / "sharded")
    assert len(whole) == 3
    end = load(folder / "sharded" / "iefp.pth")
    agree(readings(folder / "moving"), whole)
    other = load(folder / "moving" / "iefp.pth")
    assert other.keys() == end.keys()
    for key in (key for key in end if "running" not in key and "num_batches" not in key):
        torch.testing.assert_close(other[key], end[key], rtol=1e-3, atol=1e-4, msg=key)
    apart = (other["margin_fc.weight"] - end["margin_fc.weight"]).norm()
    last_step = 0.002 * momentum_of(folder / "sharded").norm()  # how far it moved the rows
    assert apart < 0.01 * last_step
    starts = [event for event in read_log(folder / "moving") if event["event"] == "start"]
    assert [(event["processes"], event["resumed_step"]) for event in starts] == [(2, 0), (1, 1), (2, 2)]


def agree(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]):
    assert len(ours) == len(theirs) and ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert [loss for loss, _ in ours] == pytest.approx([loss for loss, _ in theirs], rel=1e-3)
    assert [norm for _, norm in ours] == pytest.approx([norm for _, norm in theirs], rel=1e-2)


def momentum_of(run_folder: Path) -> torch.Tensor:
    path = list_checkpoints(run_folder / "checkpoints")[-1]
    return read_rows(path, load_checkpoint(path)["shards"], range(7))["momentum"]


def shards_stand_beside_their_checkpoints_and_the_best_one(run_folder: Path):
    folder = run_folder / "checkpoints"
    shards = [f"shard_{rank}_of_2.pth" for rank in (0, 1)]
    files = ["step_00000003.pth", *(f"step_00000003.{shard}" for shard in shards)]
    best = ["best.pth", *(f"best.{shard}" for shard in shards)]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        best + files + [f"{name}.sha256" for name in ("best.pth", *files)]
    )
    main = load_checkpoint(folder / files[0])
    assert "margin_fc.weight" not in main["model"] and main["shards"]["rows"] == [3, 4]
    momentum = [state["momentum_buffer"] for state in main["optimisers"]["identity"]["state"].values()]
    assert not any(buffer.shape == (7, 512) for buffer in momentum)
    whole = read_rows(folder / files[0], main["shards"], range(7))
    assert torch.equal(whole["weight"], load(run_folder / "iefp.pth")["margin_fc.weight"])
    assert whole["momentum"].shape == (7, 512) and whole["momentum"].any(dim=1).all()
    load_for_embedding(folder / files[0])  # comparing faces needs no shards


def test_a_sampled_run_killed_between_two_files_ends_with_the_same_bits(run, tmp_path):
    sampled = {"class_sampling_rate": 0.5, "margin": "adaface"}
    run("sampled", 2, **sampled)
    run("parts", 2, kill=("before a rename", 4, 0), **sampled)
    run("parts", 2, **sampled)
    assert same_weights(tmp_path / "sampled" / "iefp.pth", tmp_path / "parts" / "iefp.pth")
    assert readings(tmp_path / "sampled") == readings(tmp_path / "parts")
    starts = [event["resumed_step"] for event in read_log(tmp_path / "parts") if event["event"] == "start"]
    assert len(starts) == 2 and starts[1] > 0


def overflow_on_the_last(path: Path) -> None:
    """Steps in fp16 whose gradient overflows in the rows of the last process alone; each saves what came of them."""
    train, process = load_script("train"), init_distributed("cpu")

    def step(rate: float) -> dict[str, float | bool]:
        config = train.TrainConfig(sharded_classes=True, class_sampling_rate=rate, precision="fp16", disentangle="none")
        model = fill(IEFP(TINY, 1, 5, own_identities=own_identities(5, process)))
        stage = train.IdentityStage(config, model, process)
        before = {key: value.clone() for key, value in model.named_parameters()}
        if process.rank == 1:
            model.margin_fc.weight.register_hook(lambda gradient: gradient * torch.inf)
        images = torch.rand(4, 3, 112, 112, generator=torch.Generator().manual_seed(process.rank)) * 2 - 1
        stage.step(train.Batch(images, torch.arange(4), torch.zeros(4, dtype=torch.long)))
        same = all(torch.equal(value, before[key]) for key, value in model.named_parameters())
        return {"scale": stage.scaler.get_scale(), "same": same}

    torch.save([step(rate) for rate in (1.0, 0.5)], path / f"overflow_{process.rank}.pth")
    shutdown_distributed(process)
    leave(0)


def test_an_overflow_of_one_process_leaves_the_step_out_on_both(tmp_path):
    ended = in_processes(2, overflow_on_the_last, tmp_path)
    assert ended.statuses == [0, 0], ended.err
    left_out = {"scale": 32768.0, "same": True}  # half of what the scale begins with
    assert [load(tmp_path / f"overflow_{rank}.pth") for rank in (0, 1)] == 2 * [[left_out, left_out]]


# ---------------------------------------------------------------------------------------------------- one process


def test_alone_a_sharded_run_is_the_unsharded_one_and_resumes_either_way_from_either(train_identity, tmp_path):
    flags = ("--epochs", 1, "--learning-rate", 0.002, "--save-every", 1, "--keep-checkpoints", 9)
    for name, sharded in (("plain", ()), ("sharded", SHARDED[:1])):
        assert train_identity(tmp_path / name, *flags, *sharded).status == 0
    plain = readings(tmp_path / "plain")
    agree(readings(tmp_path / "sharded"), plain)
    for name, other in (("plain", SHARDED[:1]), ("sharded", ())):
        for path in list_checkpoints(tmp_path / name / "checkpoints")[1:]:
            path.unlink()
        outcome = train_identity(tmp_path / name, *flags, *other)
        assert outcome.status == 0 and "1 steps done" in outcome.out
        agree(readings(tmp_path / name), plain)


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_shard_is_reported_and_the_checkpoint_before_is_used(train_identity, tmp_path, damage):
    flags = (*SHARDED, "--class-sampling-rate", 0.5)
    assert train_identity(tmp_path / "run", *flags).status == 0
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    (shard,) = newest.parent.glob(f"{newest.stem}.shard_*.pth")
    shutil.copy(tmp_path / "run" / "iefp.pth", tmp_path / "before.pth")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0x10
    shard.unlink() if damage == "missing" else shard.write_bytes(content)
    outcome = train_identity(tmp_path / "run", *flags)
    word = "can't be read" if damage == "missing" else "is damaged"
    assert outcome.status == 0 and f"{shard} {word}" in outcome.out and "3 steps done" in outcome.out
    assert same_weights(tmp_path / "before.pth", tmp_path / "run" / "iefp.pth")


def test_a_full_disk_costs_no_older_checkpoint_and_half_shards_are_cleared_away(train_identity, tmp_path, monkeypatch):
    from training import checkpoint

    write, written = checkpoint.write_flushed, []

    def full_at_the_third(content, path):  # the shard of the second checkpoint
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        write(content, path)

    monkeypatch.setattr(checkpoint, "write_flushed", full_at_the_third)
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    left = ["step_00000001.shard_0_of_2.pth", "step_00000001.shard_0_of_2.pth.sha256",
            "step_00000002.shard_1_of_2.pth.part"]  # fmt: skip
    for name in left:  # of a run that was killed
        (folder / name).write_text("half")
    outcome = train_identity(tmp_path / "run", *SHARDED, "--save-every", 2)
    assert outcome.status == 0 and outcome.out.count("could not be written") == 1 and written[2].name.startswith(
        "step_00000003.shard_0_of_1"
    )  # fmt: skip
    assert [path.name for path in list_checkpoints(folder)] == ["step_00000004.pth", "step_00000006.pth"]
    assert not any((folder / name).exists() for name in left)


def test_a_start_from_weights_takes_the_own_rows_of_the_whole(train_identity, tmp_path):
    flags = ("--epochs", 1, "--learning-rate", 1e-9)
    assert train_identity(tmp_path / "a", *flags).status == 0
    outcome = train_identity(tmp_path / "b", *flags, "--sharded-classes", "--init-from", tmp_path / "a" / "iefp.pth")
    assert outcome.status == 0 and "0 start new" in outcome.out
    a, b = (load(tmp_path / name / "iefp.pth")["margin_fc.weight"] for name in "ab")
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ shard files


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of 7 rows in three shards, and those rows."""
    rows = {"weight": torch.randn(7, 4), "momentum": torch.randn(7, 4)}
    pieces = [slice(0, 2), slice(2, 4), slice(4, 7)]
    digests = [
        save_shard(tmp_path, 9, rank, 3, {name: value[piece].clone() for name, value in rows.items()})
        for rank, piece in enumerate(pieces)
    ]
    assert list_checkpoints(tmp_path) == []  # without the main file there is no checkpoint
    optimiser = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"params": [0, 1]}]}
    content = {"model": {"other": torch.ones(2)}, "optimisers": {"identity": optimiser},
               "shards": {"sha256": digests, "rows": [2, 2, 3]}}  # fmt: skip
    return save_checkpoint(tmp_path, 9, content, keep=1), rows


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7])
def test_any_number_of_processes_reads_its_rows_from_the_files_that_overlap_them(saved, world_size, monkeypatch):
    path, rows = saved
    from training import checkpoint

    read, names = checkpoint._read_checked, []
    monkeypatch.setattr(
        checkpoint, "_read_checked", lambda *given, **more: names.append(given[0]) or read(*given, **more)
    )
    for rank in range(world_size):
        own = range(7 * rank // world_size, 7 * (rank + 1) // world_size)
        names.clear()
        content = load_with_rows(path, own, 7, ALONE)
        assert torch.equal(content["model"]["margin_fc.weight"], rows["weight"][own.start : own.stop])
        momentum = content["optimisers"]["identity"]["state"][1]["momentum_buffer"]
        assert torch.equal(momentum, rows["momentum"][own.start : own.stop])
        overlapping = [i for i, piece in enumerate((range(2), range(2, 4), range(4, 7))) if set(piece) & set(own)]
        assert names == [path, *(shard_path(path, i, 3) for i in overlapping)]


def test_a_shard_of_another_attempt_is_refused(saved, tmp_path):
    path, _ = saved
    save_shard(tmp_path, 9, 1, 3, {"weight": torch.zeros(2, 4), "momentum": torch.zeros(2, 4)})  # whole, but later
    with pytest.raises(UserError, match="shard_1_of_3.pth is damaged"):
        load_with_rows(path, range(7), 7, ALONE)
    assert load_with_rows(path, range(2), 7, ALONE)["step"] == 9  # who needs it not does not read it
    assert "margin_fc.weight" not in load_with_rows(path, range(8), 8, ALONE)["model"]  # of another number


def test_code_in_a_shard_is_not_run(saved, tmp_path):
    path, _ = saved

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    digest = save_shard(tmp_path, 9, 0, 3, {"weight": Code()})
    reply = load_checkpoint(path)["shards"] | {"sha256": [digest, *load_checkpoint(path)["shards"]["sha256"][1:]]}
    with pytest.raises(UserError, match="more than tensors"):
        read_rows(path, reply, range(2))
    assert not (tmp_path / "executed").exists()


def test_the_shards_of_a_checkpoint_go_with_it(saved, tmp_path):
    save_checkpoint(tmp_path, 10, {"model": {}}, keep=1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step_00000010.pth", "step_00000010.pth.sha256"]
    assert subprocess.run(["sha256sum", "-c", names[1]], cwd=tmp_path, check=False).returncode == 0
