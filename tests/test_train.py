"""train.py on a tiny set: what it writes, that it repeats and resumes to the bit, one and two processes, bad input."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from scripts import ROOT, load_script

from models.weights import load_for_embedding


def training_set(faces: Path) -> Path:
    return faces / "ms1mv3_256times256_with_age"


def read_log(run_folder: Path) -> list[dict]:
    return [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]


def same_weights(a: Path, b: Path) -> bool:
    a, b = torch.load(a, weights_only=True), torch.load(b, weights_only=True)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_both_stages_run_as_programs_and_write_what_test_py_and_the_next_stage_read(tiny_faces, tmp_path):
    common = ["--train-data", str(training_set(tiny_faces)), *SMALL, "--epochs", "1"]
    for stage, extra in (("age", []), ("identity", ["--age-weights", str(tmp_path / "age" / "age.pth")])):
        flags = ["--stage", stage, "--run-folder", str(tmp_path / stage), *common, *extra]
        ended = subprocess.run([sys.executable, ROOT / "train.py", *flags], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    model, has_age_branch = load_for_embedding(tmp_path / "identity" / "iefp.pth")
    assert has_age_branch and model.backbone_id.backbone == "iresnet18_quarter"
    age_file = torch.load(tmp_path / "age" / "age.pth", weights_only=True)
    for key, value in model.state_dict().items():  # the age branch came through stage identity untouched
        if key.startswith("backbone_ae."):
            assert torch.equal(value, age_file[key.replace("backbone_ae.", "backbone.")]), key
    events = read_log(tmp_path / "identity")
    assert [event["event"] for event in events] == ["start", "train", "train", "train", "end"]
    assert {"face_recognition_loss", "mutual_information", "log_likelihood", "age_loss"} <= events[1].keys()
    assert list((tmp_path / "identity" / "tensorboard").iterdir())
    assert json.loads((tmp_path / "identity" / "config.json").read_text())["epochs"] == 1


def test_the_same_seed_repeats_to_the_bit_and_another_does_not(train_identity, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train_identity(tmp_path / name, "--epochs", 1, "--seed", seed).status == 0
    assert same_weights(tmp_path / "a" / "iefp.pth", tmp_path / "b" / "iefp.pth")
    assert not same_weights(tmp_path / "a" / "iefp.pth", tmp_path / "c" / "iefp.pth")


def test_a_run_stopped_in_mid_epoch_goes_on_to_the_bit(train_identity, tmp_path, monkeypatch):
    flags = ("--epochs", 2, "--save-every", 2)
    assert train_identity(tmp_path / "whole", *flags).status == 0

    stage, steps = load_script("train").IdentityStage, []
    step_of_stage = stage.step

    def stop_at_the_sixth(self, *batch):
        steps.append(1)
        if len(steps) == 6:  # the last step of the second epoch; step 5 was after the checkpoint of step 4
            raise KeyboardInterrupt
        return step_of_stage(self, *batch)

    monkeypatch.setattr(stage, "step", stop_at_the_sixth)
    assert train_identity(tmp_path / "stopped", *flags).status == 130
    assert not (tmp_path / "stopped" / "iefp.pth").exists()
    monkeypatch.setattr(stage, "step", step_of_stage)
    outcome = train_identity(tmp_path / "stopped", *flags)
    assert outcome.status == 0 and "4 steps done" in outcome.out
    assert same_weights(tmp_path / "whole" / "iefp.pth", tmp_path / "stopped" / "iefp.pth")


def test_a_finished_run_started_again_changes_nothing(train_identity, tmp_path):
    for _ in range(2):
        assert train_identity(tmp_path / "run", "--epochs", 1).status == 0
        shutil.copy(tmp_path / "run" / "iefp.pth", tmp_path / "first.pth")
    assert same_weights(tmp_path / "first.pth", tmp_path / "run" / "iefp.pth")
    assert sum(event["event"] == "train" for event in read_log(tmp_path / "run")) == 3


def test_another_recipe_in_the_same_run_folder_is_refused_by_name(train_identity, tmp_path):
    assert train_identity(tmp_path / "run", "--epochs", 1).status == 0
    outcome = train_identity(tmp_path / "run", "--epochs", 1, "--learning-rate", 0.5)
    assert outcome.status == 2 and "--learning-rate 0.02 -> 0.5" in outcome.err


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_under_torchrun_keep_equal_parameters(tiny_faces, age_weights, tmp_path):
    program = f"""
import sys, torch, torch.distributed as dist
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from scripts import load_script
train = load_script("train")
finish = train.save
def compare(run, position):
    for name, parameter in run.stage.model.named_parameters():
        everyones = [torch.empty_like(parameter) for _ in range(2)]
        dist.all_gather(everyones, parameter.detach().contiguous())
        assert torch.equal(everyones[0], everyones[1]), name
    print("equal on rank", run.process.rank, flush=True)
    return finish(run, position)
train.save = compare
from utils.config import parse_config, run_script
run_script(lambda: train.train(parse_config(train.TrainConfig)))
"""
    (tmp_path / "compare.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--master-port", str(free_port()), tmp_path / "compare.py",
               "--train-data", training_set(tiny_faces), "--age-weights", age_weights,
               "--run-folder", tmp_path / "run", *SMALL, "--epochs", "1"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "equal on rank 0" in ended.stdout and "equal on rank 1" in ended.stdout
    start = read_log(tmp_path / "run")[0]
    assert start["processes"] == 2
    assert load_for_embedding(tmp_path / "run" / "iefp.pth")[1]


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning-rate", "0"], "--learning-rate 0.0 is out of range: give a number above 0"),
        (["--batch-size", "1"], "--batch-size 1 is out of range"),
        (["--learning-rate-epochs", "3", "0"], "--learning-rate-epochs 0 is out of range"),
        (["--batch-size", "1000"], "--batch-size"),
        (["--purification", "9"], "purification 9 is unknown"),
        (["--backbone", "resnet50"], "backbone 'resnet50' is unknown"),
        (["--device", "tpu"], "--device tpu"),
        (["--age-weights", "nowhere.pth"], "nowhere.pth does not exist"),
        (["--train-data", "nowhere"], "nowhere"),
        (["@nowhere.args"], "argument file nowhere.args can't be read"),
        (["--names", "fgnet"], "001A02.JPG"),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_status_2(train_identity, tmp_path, flags, words):
    outcome = train_identity(tmp_path / "run", *flags)
    assert outcome.status == 2 and words in outcome.err, outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and "Traceback" not in outcome.err


def test_a_flag_that_does_not_exist_is_status_2_and_named(train_identity, tmp_path):
    outcome = train_identity(tmp_path / "run", "--lambda", "1")
    assert outcome.status == 2 and "--lambda" in outcome.err


def damage(faces: Path, target: Path, what: str) -> Path:
    folder = target / "faces"
    shutil.copytree(training_set(faces), folder)
    people = sorted(folder.iterdir())
    picture = sorted(people[0].iterdir())[0]
    if what == "truncated":
        picture.write_bytes(picture.read_bytes()[:700])
    elif what == "no age":
        picture.rename(picture.with_name("00000000.jpg"))
    elif what == "age of 121":
        picture.rename(picture.with_name("00000000_age_121.jpg"))
    elif what == "one identity":
        for person in people[1:]:
            shutil.rmtree(person)
    elif what == "empty":
        for person in people:
            shutil.rmtree(person)
    return folder


@pytest.mark.parametrize(
    ("what", "workers", "words"),
    [
        ("truncated", 0, "cannot be decoded"),
        ("truncated", 1, "cannot be decoded"),
        ("no age", 0, "00000000.jpg"),
        ("age of 121", 0, "121"),
        ("one identity", 0, "identit"),
        ("empty", 0, "faces"),
    ],
)
def test_bad_pictures_are_one_sentence_and_status_2(train_identity, tiny_faces, tmp_path, what, workers, words):
    folder = damage(tiny_faces, tmp_path, what)
    flags = ("--train-data", folder, "--workers", workers, "--batch-size", 6, "--epochs", 1)
    outcome = train_identity(tmp_path / "run", *flags)
    assert outcome.status == 2 and words in outcome.err and str(folder) in outcome.err, outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and "Traceback" not in outcome.err


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_flag(train_identity, tmp_path):
    outcome = train_identity(tmp_path / "run", "--epochs", 3, "--learning-rate", 1e38, "--clip-norm", 1e38)
    assert outcome.status == 2 and "lower --learning-rate" in outcome.err, outcome.err
