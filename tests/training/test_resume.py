"""Resuming: fewer batches, other pictures or people, another precision, failing devices, one truth for the best."""

import dataclasses
import os
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL
from processes import in_processes, train_with
from scripts import TINY, load_script
from test_train import read_log, same_weights, training_set

from data.faces import index_identity_folders
from data.index_cache import index_digests
from data.loaders import EpochSampler
from data.record_packing import pack_folder
from data.records import index_record_file
from meta import FILENAME_PATTERNS, UserError
from models.disentangle.registry import CRITICS
from models.iefp import IEFP
from training import checkpoint, dry_run, setup, state
from training import optim as optimisation
from training.checkpoint import find_best, list_checkpoints, load_checkpoint, load_newest, save_checkpoint, save_shard
from training.optim import load_optimiser, make_optimiser
from training.state import Run, TrainState
from training.validation import Validation, check_best_metric, figures_of
from utils.cli import parse_config
from utils.device_errors import is_device_error
from utils.distributed import DistInfo, init_distributed, leave, shutdown_distributed
from utils.files import sha256

train = load_script("train")
ALONE = DistInfo(0, 1, torch.device("cpu"))
TWO_EPOCHS = ("--epochs", 2, "--save-every", 1)
BEST = ("--best-metric", "face_recognition_loss")
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def run_of(flags: tuple, age_weights: Path, run_folder: str, stop_after: int | None = None) -> int:
    """Trains in this process, in the current folder; asked to stop in the last step that it is to take."""
    words = ["--train-data", "faces", "--age-weights", age_weights, "--run-folder", run_folder, *SMALL, *flags]
    step_of_stage, done = train.IdentityStage.step, []

    def step(self, batch):
        done.append(1)
        if len(done) == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_of_stage(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.IdentityStage, "step", step)
        return train.train(parse_config(train.TrainConfig, list(map(str, words))))


@pytest.fixture(scope="module")
def prepared(tiny_faces, age_weights, tmp_path_factory) -> Path:
    """A folder with `faces`, 18 of 6 people in three batches; `whole`, a run never stopped; `run`, two steps of it."""
    folder = tmp_path_factory.mktemp("prepared")
    shutil.copytree(training_set(tiny_faces), folder / "faces")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_of((*TWO_EPOCHS, *BEST), age_weights, "whole") == 0
        assert run_of((*TWO_EPOCHS, *BEST), age_weights, "run", stop_after=2) == 143
    return folder


@pytest.fixture
def begun(prepared, tmp_path, monkeypatch) -> Path:
    """The current folder: a copy of `prepared` of the test's own."""
    monkeypatch.chdir(shutil.copytree(prepared, tmp_path / "own"))
    return tmp_path / "own"


@pytest.fixture
def resumed(run_main, age_weights, begun):
    """Goes on with `run`, by the same command and more flags."""

    def resume(*flags: object):
        return run_main("train", "--train-data", "faces", "--age-weights", age_weights, "--run-folder", "run",
                        *SMALL, *TWO_EPOCHS, *BEST, *flags)  # fmt: skip

    return resume


def rewrite(change) -> None:
    """Changes the content of the newest checkpoint of `run`, which stays a good one."""
    path = list_checkpoints(Path("run", "checkpoints"))[-1]
    content = load_checkpoint(path)
    change(content)
    torch.save(content, path)
    checkpoint.checksum_path(path).write_text(f"{sha256(path)}  {path.name}\n")


def as_of_an_earlier_version(content: dict) -> None:
    del content["index"], content["is_best"]


def at(epoch: int, batch: int, step: int):
    return lambda content: content.update(position={"epoch": epoch, "batch": batch, "step": step})


def steps_of_epochs() -> list[tuple[int, int]]:
    return [(event["epoch"], event["step"]) for event in read_log(Path("run")) if event["event"] == "train"]


# ------------------------------------------------------------------------------------------------- fewer batches


def test_a_run_resumed_with_fewer_batches_goes_on_with_the_next_epoch(resumed, monkeypatch):
    """1a: by another --batch-size; the dry run says the same, and draws that epoch's first batch."""
    fewer = ("--batch-size", 10, "--override-config")
    sentence = "12 images of epoch 1 are done, and it has 10 now: the rest of epoch 1 is left out"
    with monkeypatch.context() as patch:
        patch.setattr(dry_run, "measure", lambda *_: dry_run.Measured(10, dry_run.StepTime(0.1, 0.1, 0.1, 0), 10**9, 0))
        outcome = resumed(*fewer, "--dry-run")
    assert outcome.status == 0 and sentence in outcome.out and Path("run", "dry_run.png").exists(), outcome.err
    outcome = resumed(*fewer)
    assert outcome.status == 0 and sentence in outcome.out, outcome.err
    assert steps_of_epochs() == [(0, 1), (0, 2), (1, 3)]


def content_at(epoch: int, batch: int, batch_size: int = 6, pictures: str = "same") -> dict:
    return {"position": {"epoch": epoch, "batch": batch, "step": 7}, "config": {"batch_size": batch_size},
            "index": {"pictures": pictures, "num_pictures": 48}}  # fmt: skip


@pytest.mark.parametrize(
    ("saved", "batch_size", "position"),
    [
        (content_at(0, 7), 6, (0, 7)),
        (content_at(0, 7), 20, (1, 0)),  # 42 images done, an epoch has 40
        (content_at(0, 7), 14, (1, 0)),  # 42 of 42
        (content_at(0, 6), 12, (0, 3)),
        (content_at(0, 5), 20, (0, 1)),  # in mid-batch: those ten images come again
        (content_at(1, 0), 48, (1, 0)),
        (content_at(0, 7, pictures="others"), 6, (1, 0)),
        (content_at(1, 0, pictures="others"), 6, (1, 0)),
    ],
)
def test_images_done_say_where_an_epoch_goes_on(saved, batch_size, position):
    """1a and 1b: at the same image with another batch size, with the next epoch where nothing of this one is left."""
    config, sampler = train.TrainConfig(batch_size=batch_size), EpochSampler(48, batch_size, seed=0)
    digests = {"pictures": "same", "num_pictures": 48}
    assert state.state_after(config, saved, digests, sampler, ALONE) == TrainState(*position, 7)
    sampler.set_epoch(*position)
    assert len(sampler) > 0


# ------------------------------------------------------------------------------------------ other people and pictures


def test_other_people_are_an_error_that_names_the_data(resumed):
    """1b: a person's folder renamed in mid-run, so that rows of the margin head would belong to others."""
    sorted(Path("faces").iterdir())[1].rename("faces/renamed")
    outcome = resumed()
    assert outcome.status == 2 and "--train-data faces holds other people than the checkpoints in run" in outcome.err
    assert "their names or their order" in outcome.err and "--init-from" in outcome.err


def test_other_pictures_of_the_same_people_go_on_with_the_next_epoch(resumed):
    """1b: six pictures more leave as many batches and more; none of the first epoch's is repeated or left out."""
    for path in sorted(Path("faces").glob("*/*.jpg"))[:6]:
        shutil.copy(path, path.with_name(f"9{path.name[1:]}"))
    outcome = resumed()
    assert outcome.status == 0, outcome.err
    assert "holds other pictures than when this run was saved (18 then, 24 now): the rest of epoch 1" in outcome.out
    assert steps_of_epochs() == [(0, 1), (0, 2), (1, 3), (1, 4), (1, 5), (1, 6)]


def test_a_checkpoint_of_the_version_before_goes_on_to_the_bit(resumed):
    """1b: without digests of the index it is resumed as it was, and pictures touched meanwhile are the same ones."""
    rewrite(as_of_an_earlier_version)
    for path in Path("faces").glob("*/*.jpg"):
        os.utime(path, (1, 1))
    outcome = resumed()
    assert outcome.status == 0 and "2 steps done" in outcome.out, outcome.err
    assert same_weights(Path("whole", "iefp.pth"), Path("run", "iefp.pth"))


def test_digests_of_an_index_distinguish_people_and_pictures(begun):
    """1b: what changes which digest, in folders and in records."""

    def digests() -> dict:
        index = index_identity_folders("faces", FILENAME_PATTERNS["ms1mv3"])
        pack_folder(index, Path("records", "train.rec"))
        records = index_digests(index_record_file("records/train.rec"))
        shutil.rmtree("records")
        return {"folders": index_digests(index), "records": records}

    def changed(now: dict) -> set[tuple[str, str]]:
        digest_names = [(kind, what) for kind in now for what in ("people", "pictures")]
        return {(kind, what) for kind, what in digest_names if now[kind][what] != before[kind][what]}

    before, first = digests(), sorted(Path("faces").iterdir())[0]
    assert before["folders"]["num_people"] == 6 and before["records"]["num_pictures"] == 18
    picture = sorted(first.iterdir())[0]
    os.utime(picture, (1, 1))
    assert changed(digests()) == set()
    picture.rename(first / "1_age_30.jpg")
    assert ("folders", "pictures") in changed(digests()) and ("folders", "people") not in changed(digests())
    (first / "1_age_30.jpg").rename(picture)
    first.rename(first.with_name("zz"))  # the last person now: labels of a record file stay 0 to 5
    assert {("folders", "people"), ("folders", "pictures"), ("records", "pictures")} <= changed(digests())
    shutil.copy("faces/zz/" + picture.name, "faces/zz/2_age_30.jpg")
    assert ("records", "people") in changed(digests())  # labels say little: how many pictures each has counts there


def compare_indices_of(folders: list[list[str]]) -> None:
    """Each rank has its own folder of every couple."""
    process = init_distributed("cpu")
    for folder in (couple[process.rank] for couple in folders):
        try:
            setup.compare_indices(train.TrainConfig(train_data=folder), index_identity_folders(folder, None), process)
            print("the same", flush=True)
        except UserError as error:
            print(error, flush=True)
    shutdown_distributed(process)
    leave(0)


def test_processes_with_other_pictures_end_with_one_sentence(begun):
    """1b: machines whose data differ would shuffle differently in silence, or wait for steps that never come."""
    other = shutil.copytree("faces", "other")
    sorted(Path(other).glob("*/*.jpg"))[0].unlink()
    couples = [["faces", "faces"], ["faces", "other"]]
    ended = in_processes(2, compare_indices_of, [[str(Path(name).resolve()) for name in pair] for pair in couples])
    assert ended.statuses == [0, 0] and ended.out.count("the same\n") == 2, ended
    sentence = "process 0 has 18 pictures of 6 people, process 1 17 of 6, or under other names: give all machines the"
    assert ended.out.count(sentence) == 2


# -------------------------------------------------------------------------------------------------------- precision


def load_the_run(**settings):
    """The stage of `run` with these settings, its newest checkpoint put into it."""
    config = train.TrainConfig(backbone=TINY, run_folder=Path("run"), device="cpu", **settings)
    stage = train.IdentityStage(config, IEFP(TINY, 1, 6), ALONE)
    digests = index_digests(index_identity_folders("faces", FILENAME_PATTERNS["ms1mv3"]))
    assert state.load_run(config, stage, digests, ALONE) is not None
    return stage


def test_a_run_begun_in_fp32_goes_on_in_fp16_and_back(resumed):
    """1c: the scaler's empty state is passed over, and fp16 begins with a fresh scale."""
    refused = resumed("--precision", "fp16")
    assert refused.status == 2 and "--precision auto -> fp16" in refused.err
    outcome = resumed("--precision", "fp16", "--epochs", 1, "--override-config")
    assert outcome.status == 0 and "2 steps done" in outcome.out, outcome.err
    scale = load_newest(Path("run", "checkpoints"), print)["scaler"]["scale"]
    assert load_the_run(precision="fp16").scaler.get_scale() == scale > 0
    assert not load_the_run(precision="fp32").scaler.is_enabled()


def test_a_checkpoint_without_an_entry_is_of_another_model_whichever_it_is(begun):
    """1c: loading the scaler is guarded as the rest is."""
    rewrite(lambda content: content.pop("scaler"))
    with pytest.raises(UserError, match="another model than the data and flags ask for .'scaler' is missing there"):
        load_the_run()


def test_momentum_that_a_run_had_not_begins_at_zero():
    """1c: of a run without momentum; memory taken as it is would stay there when fp16's first step overflows."""
    config, parameters = train.TrainConfig(momentum=0.9), [torch.zeros(3, requires_grad=True)]
    optimiser = make_optimiser(config, parameters)
    load_optimiser(optimiser, {"state": {}, "param_groups": []})
    assert torch.equal(optimiser.state[parameters[0]]["momentum_buffer"], torch.zeros(3))


# --------------------------------------------------------------------------------------------------- what went wrong


def raises(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


def while_copying(error: str):
    """What load_state_dict makes of any error of a copy."""
    return RuntimeError(f"Error(s) in loading state_dict for IEFP:\n\tWhile copying the parameter named \"x\", an "
                        f"exception occurred : ('{error}',).")  # fmt: skip


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ((state, "load_optimiser"), OUT_OF_MEMORY),
        ((state, "load_optimiser"), RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel")),
        ((IEFP, "load_state_dict"), while_copying("CUDA error: uncorrectable ECC error encountered")),
        ((torch, "load"), RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate")),
        ((torch, "load"), MemoryError()),
    ],
    ids=["GPU memory", "CUDA", "copy", "memory", "MemoryError"],
)
def test_an_error_of_memory_or_a_device_while_loading_is_no_other_model(begun, monkeypatch, capsys, place, error):
    """1d: what happened is said in one sentence, and no older checkpoint is taken instead."""
    monkeypatch.setattr(*place, raises(error))
    with pytest.raises(UserError) as refused:
        load_the_run()
    sentence = str(refused.value)
    assert "could not be loaded" in sentence and f"({type(error).__name__}: " in sentence
    assert "another model" not in sentence and "none of the" not in sentence
    assert "\n" not in sentence and capsys.readouterr().out == ""


def test_a_checkpoint_of_another_model_says_what_differs(begun):
    """1d: shapes and names, found before anything is loaded."""
    config = train.TrainConfig(run_folder=Path("run"), device="cpu")
    stage = train.IdentityStage(config, IEFP(TINY, 0, 6), ALONE)
    with pytest.raises(UserError, match=r"of another model than the data and flags ask for \(.*spu.* is not asked for"):
        state.load_into(stage, load_newest(Path("run", "checkpoints"), print), Path("run", "checkpoints"))
    model, other = IEFP(TINY, 1, 6).state_dict(), IEFP(TINY, 1, 5).state_dict()
    assert checkpoint.differences(model, other) == ["margin_fc.weight is (5, 512) there, (6, 512) here"]


def test_a_cuda_error_while_saving_is_no_full_disk(saving_run, tmp_path, monkeypatch):
    """1d: the run ends with what happened; it does not go on as with a full disk."""
    monkeypatch.setattr(torch, "save", raises(RuntimeError("CUDA error: an illegal memory access\nadvice")))
    with pytest.raises(UserError, match=r"step 1 could be made \(RuntimeError: CUDA error: an illegal memory access\)"):
        state.save(saving_run, TrainState(0, 1, 1))
    assert saving_run.log.events == [] and list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [torch.zeros(300_000), [torch.zeros(100) for _ in range(1000)], "x" * 500_000],
    ids=["a large tensor", "many tensors", "text"],
)
def test_a_write_that_fails_is_the_systems_error_whatever_torch_makes_of_it(tmp_path, content):
    """1d: torch.save says "unexpected pos" in a RuntimeError; here a real limit of file sizes fails the write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_checkpoint(tmp_path, 1, {"content": content}, keep=1)
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save_atomically({"content": content}, tmp_path / "iefp.pth")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


class Wrapped(RuntimeError):
    """As torch.compile's BackendCompilerFailed."""

    def __init__(self, inner: Exception):
        super().__init__("backend='inductor' raised")
        self.inner_exception = inner


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, Wrapped(OUT_OF_MEMORY), RuntimeError("CUDA error: launch failure")])
def test_out_of_memory_is_no_failure_of_compile(monkeypatch, capsys, error):
    """1d: without translation it would only come again, and an error of the compiler is still passed over."""
    encoder = torch.nn.Linear(2, 2)
    monkeypatch.setattr(torch, "compile", lambda call, **_: raises(error))
    optimisation.maybe_compile(train.TrainConfig(compile=True), [encoder])
    with pytest.raises(type(error)):
        encoder(torch.zeros(1, 2))
    assert "training goes on without" not in capsys.readouterr().err
    monkeypatch.setattr(torch, "compile", lambda call, **_: raises(Wrapped(TypeError("no such kernel"))))
    optimisation.maybe_compile(train.TrainConfig(compile=True), [encoder])
    assert encoder(torch.zeros(1, 2)).shape == (1, 2)
    assert "training goes on without" in capsys.readouterr().err


def test_errors_of_wrong_shapes_are_none_of_a_device():
    """1d: what a wrong model raises is not taken for a failing device."""
    with pytest.raises(RuntimeError) as wrong:
        torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(2, 2).state_dict())
    assert not is_device_error(wrong.value) and is_device_error(OUT_OF_MEMORY) and is_device_error(MemoryError())


# --------------------------------------------------------------------------------------------- one truth for the best


class Kill(BaseException):
    pass


def content_with(best: float | None, is_best: bool) -> dict:
    return {"config": {"best_metric": "loss"}, "best": best, "is_best": is_best, "model": {}}


def save_with_shards(folder: Path, step: int, best: float, is_best: bool, keep: int = 2) -> None:
    rows = [save_shard(folder, step, rank, 2, {"weight": torch.full((2, 1), best)}) for rank in (0, 1)]
    content = content_with(best, is_best) | {"shards": {"sha256": rows, "rows": [2, 2]}}
    save_checkpoint(folder, step, content, keep, is_best)


def killed_at(monkeypatch, point: int, work) -> bool:
    """Runs `work`, ended at its n-th rename, link or removal; whether it came to its end."""
    calls = []

    def counted(function):
        def call(*given, **more):
            calls.append(1)
            if len(calls) == point:
                raise Kill
            return function(*given, **more)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(os, "link", counted(os.link))
        patch.setattr(checkpoint, "flush_folder", counted(checkpoint.flush_folder))
        try:
            work()
        except Kill:
            return False
    return True


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_kill_anywhere_leaves_best_and_its_value_together(tmp_path, monkeypatch, links):
    """1e: at every rename and link of saving a new best, with shards; who goes on has the file and its own value."""
    if not links:
        monkeypatch.setattr(os, "link", raises(OSError("no links here")))
    point, ended, values = 0, False, set()
    while not ended:
        point += 1
        folder = tmp_path / str(point)
        save_with_shards(folder, 1, 0.5, True)
        save_with_shards(folder, 2, 0.5, False)
        ended = killed_at(monkeypatch, point, lambda folder=folder: save_with_shards(folder, 3, 0.25, True))
        newest = load_newest(folder, print)
        best = find_best(folder, newest, "loss", False, print)
        kept = load_checkpoint(folder / "best.pth")
        assert kept["best"] == best == (0.25 if newest["step"] == 3 else 0.5), point
        rows = checkpoint.read_rows(folder / "best.pth", kept["shards"], range(4))["weight"]
        assert torch.equal(rows, torch.full((4, 1), best))
        values.add(best)
    assert values == {0.5, 0.25} and point > 10


def test_a_disk_too_full_for_a_copy_of_the_best_leaves_the_one_before(tmp_path, monkeypatch):
    """1e: where the file system has no links; the checkpoint itself is there, and later makes up for it."""
    save_with_shards(tmp_path, 1, 0.5, True)
    copy, copied = shutil.copyfile, []

    def full_at_the_second(path, target):
        copied.append(target)
        if len(copied) == 2:
            Path(target).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return copy(path, target)

    monkeypatch.setattr(os, "link", raises(OSError("no links here")))
    monkeypatch.setattr(shutil, "copyfile", full_at_the_second)
    with pytest.raises(checkpoint.BestNotKept, match="No space"):
        save_with_shards(tmp_path, 2, 0.25, True)
    kept = load_checkpoint(tmp_path / "best.pth")
    assert kept["best"] == 0.5 and checkpoint.read_rows(tmp_path / "best.pth", kept["shards"], range(4))
    assert not list(tmp_path.glob("*.part"))
    assert find_best(tmp_path, load_newest(tmp_path, print), "loss", False, print) == 0.25
    assert load_checkpoint(tmp_path / "best.pth")["step"] == 2


def test_the_best_of_a_later_checkpoint_that_is_damaged_is_not_overwritten(tmp_path, capsys):
    """1e: the run goes on from an earlier one, whose own value is worse than what best.pth has."""
    save_checkpoint(tmp_path, 1, content_with(0.5, True), keep=3, is_best=True)
    save_checkpoint(tmp_path, 2, content_with(0.25, True), keep=3, is_best=True)
    earlier = load_checkpoint(tmp_path / "step_00000001.pth")
    assert find_best(tmp_path, earlier, "loss", False, print) == 0.25
    assert find_best(tmp_path, earlier, "another metric", False, print) is None
    assert find_best(tmp_path, content_with(None, False), "loss", False, print) is None  # left by another run
    (tmp_path / "best.pth").write_bytes(b"damaged")
    assert find_best(tmp_path, earlier, "loss", False, print) == 0.5 and "is damaged" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "best.pth")["step"] == 1


@pytest.fixture
def saving_run(tmp_path, monkeypatch):
    """As much of a run as `save` needs, with --best-metric loss."""
    monkeypatch.setattr(state, "describe_branches", lambda model: {})
    stage = SimpleNamespace(model=torch.nn.Linear(2, 2), optimisers={}, ema=None,
                            scaler=torch.amp.GradScaler("cpu", enabled=False))  # fmt: skip
    config = train.TrainConfig(run_folder=tmp_path, best_metric="loss")
    log = SimpleNamespace(events=[], event=lambda kind, step, **_: log.events.append((kind, step)))
    return Run(config, ALONE, None, stage, None, log=log, validation=Validation({}, ALONE, None, None))


def test_metrics_are_kept_until_a_save_succeeded(saving_run, tmp_path, monkeypatch):
    """1e: a disk that is full loses neither the metrics nor the best value; both go with the next save."""
    run = saving_run
    run.metrics = [{"loss": 1.0}]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_flushed", raises(OSError(28, "No space left on device")))
        assert not state.save(run, TrainState(0, 1, 1))
    assert (run.metrics, run.best) == ([{"loss": 1.0}], None)
    run.metrics.append({"loss": 3.0})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "keep_as_best", raises(OSError(28, "No space left on device")))
        assert state.save(run, TrainState(0, 2, 2))
    assert (run.metrics, run.best) == ([], None)  # saved, but it did not become best.pth
    run.metrics = [{"loss": 2.5}]
    assert state.save(run, TrainState(0, 3, 3))
    assert run.best == load_checkpoint(tmp_path / "checkpoints" / "best.pth")["best"] == 2.5
    run.metrics = [{"loss": float("nan")}]
    assert state.save(run, TrainState(0, 4, 4)) and run.best == 2.5
    assert run.log.events == [("checkpoint_failed", 1), ("best_not_kept", 2)]
    assert load_checkpoint(tmp_path / "checkpoints" / "step_00000004.pth")["best"] == 2.5


def test_a_run_killed_before_its_best_got_its_name_ends_as_one_never_stopped(resumed, monkeypatch):
    """1e: between the checkpoint of a new best and best.pth; before, the value was kept beside the older file."""
    shutil.rmtree("run")
    keep, kept = checkpoint.keep_as_best, []

    def stopped_at_the_second(path):
        kept.append(path)
        if len(kept) == 2:
            raise KeyboardInterrupt
        keep(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "keep_as_best", stopped_at_the_second)
        assert resumed().status == 130
    assert load_checkpoint(Path("run/checkpoints/best.pth"))["step"] < int(kept[1].stem.removeprefix("step_"))
    assert resumed().status == 0
    ends = [read_log(Path(name))[-1] for name in ("whole", "run")]
    assert ends[0]["best_step"] == ends[1]["best_step"]
    assert ends[0]["face_recognition_loss"] == ends[1]["face_recognition_loss"]
    assert same_weights(Path("whole", "iefp_best.pth"), Path("run", "iefp_best.pth"))


# ------------------------------------------------------------------------------------------- folders of each machine


def train_in_own_folder(flags: list[str], folders: list[str]) -> None:
    train_with(lambda number: None, [*flags, "--run-folder", folders[int(os.environ["RANK"])]])


def test_a_run_folder_that_is_not_shared_is_one_sentence(begun, age_weights):
    """2b: the process that sees no checkpoint would begin anew while the other waits for its rows."""
    flags = ["--train-data", begun / "faces", "--age-weights", age_weights, *SMALL, *TWO_EPOCHS, "--sharded-classes",
             "--override-config"]  # fmt: skip
    ended = in_processes(2, train_in_own_folder, list(map(str, flags)), [str(begun / "run"), str(begun / "other")])
    assert 2 in ended.statuses, ended
    sentence = "step_00000001.pth is seen by one process and not by process 1: give a --run-folder on storage that all"
    assert sentence in ended.err and "Traceback" not in ended.err, ended.err[-3000:]


# ----------------------------------------------------------------------------------------------- which way is better


def test_who_makes_a_figure_says_which_way_is_better():
    """4b: no guess from spelling; a set called x_eer_percent.bin has accuracies like any other."""
    listed = SimpleNamespace(genuine=np.arange(1200) < 200)
    pairs = SimpleNamespace(protocol="ten_fold_verification", pairs=listed)
    found = figures_of({"x_eer_percent": pairs, "fgnet": SimpleNamespace(protocol="leave_one_out", pairs=None)})
    assert found == {
        "x_eer_percent_accuracy_percent": True,
        "x_eer_percent_auc_percent": True,
        "x_eer_percent_eer_percent": False,
        "x_eer_percent_tar_at_far_1e-2_percent": True,
        "fgnet_rank1_percent": True,
        "fgnet_cmc_percent_1": True,
        "fgnet_cmc_percent_10": True,
    }


def test_losses_and_errors_of_a_stage_are_better_when_lower_and_accuracies_when_higher(saving_run):
    """4b: of stage age with both heads, of stage identity, and with grl, whose classifier should find age worse."""
    of_age = train.AgeStage.logged_metrics(train.TrainConfig(stage="age", age_head="years"))
    higher = {"age_group_accuracy_percent", "by_years_age_group_accuracy_percent"}
    assert {name for name, higher_is_better in of_age.items() if higher_is_better} == higher
    logged = train.IdentityStage.logged_metrics(train.TrainConfig())
    assert {"log_likelihood", "mutual_information"} <= logged.keys() and not any(logged.values())
    config = train.TrainConfig(disentangle="grl")
    logged = train.IdentityStage.logged_metrics(config)
    better = {metric: check_best_metric(dataclasses.replace(config, best_metric=metric), logged) for metric in logged}
    assert [name for name, is_higher in better.items() if is_higher] == ["age_classifier_loss"]
    run = saving_run
    run.best, run.metrics, run.higher_is_better = 1.0, [{"loss": 2.0}], True
    assert state.new_best(run, {}) == 2.0
    run.higher_is_better = False
    assert state.new_best(run, {}) is None


@pytest.mark.parametrize("method", [name for name, one in CRITICS.items() if one.updates and name != "iefp"])
def test_a_critic_s_figures_are_better_the_way_the_identity_branch_moves_them(method):
    """4b: a step down its penalty's gradient; grl's classifier then finds age worse, OE-CNN's line fits it better.

    CLUB would have to be trained first.
    """
    torch.manual_seed(0)
    critic, age = CRITICS[method](), torch.randn(64, 512)
    groups = torch.arange(64) % 8
    identity = torch.nn.Parameter(torch.randn(64, 512) + 0.3 * age)

    def figures() -> tuple[float, float]:
        return critic(age, identity, groups).item(), critic.penalty(age, identity, groups, None).item()

    before = figures()
    critic.penalty(age, identity, groups, None).backward()
    with torch.no_grad():
        identity -= 0.1 * identity.grad / identity.grad.norm()
    rises = tuple(now > then for now, then in zip(figures(), before, strict=True))
    assert rises == (critic.higher_objective_is_better, critic.higher_penalty_is_better)


# ------------------------------------------------------------------------------------------------- nothing left to do


def test_fewer_epochs_than_are_done_is_a_sentence(resumed):
    """13: --epochs 1 --override-config with more done says that nothing is left and what to give."""
    rewrite(at(1, 1, 2))
    outcome = resumed("--epochs", 1, "--override-config")
    assert outcome.status == 0, outcome.err
    assert "1 epochs and 1 batches are done and --epochs is 1: nothing is left to train; to go on give" in outcome.out
    assert "--epochs above 1, with --override-config" in outcome.out
    assert Path("run", "iefp.pth").exists()
