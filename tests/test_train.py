"""train.py on a tiny set: what it writes, that it repeats and resumes to the bit, one and two processes, bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from processes import free_port
from scripts import ROOT, load_script

from data.faces import index_identity_folders
from data.record_packing import pack_folder
from meta import FILENAME_PATTERNS
from models.iefp import IEFP
from models.weights import age_file_tensors, load_age_branch, load_for_ages, load_for_embedding


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


def test_two_processes_under_torchrun_keep_equal_parameters(tiny_faces, age_weights, tmp_path):
    program = f"""
import sys, torch, torch.distributed as dist
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from scripts import load_script
train = load_script("train")
finish = train.save
def compare(run, state):
    for name, parameter in run.stage.model.named_parameters():
        everyones = [torch.empty_like(parameter) for _ in range(2)]
        dist.all_gather(everyones, parameter.detach().contiguous())
        assert torch.equal(everyones[0], everyones[1]), name
    sys.stdout.write(f"equal on rank {{run.process.rank}}\\n")  # in one piece, for two write
    sys.stdout.flush()
    return finish(run, state)
train.save = compare
from utils.cli import parse_config, run_script
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


# --------------------------------------------------------------------------------------------- age features, records


def test_with_the_cache_losses_are_those_without_within_its_rounding(train_identity, tiny_faces, tmp_path):
    """Features are rounded to 11 bits, 5e-4: losses by 2e-4 at first, 1e-3 after nine small steps."""
    flags = ("--epochs", 3, "--learning-rate", 0.001, "--cache-folder", tmp_path / "cache")
    for name, cache in (("without", "off"), ("with", "auto"), ("again", "auto"), ("ahead", "ahead")):
        outcome = train_identity(tmp_path / name, *flags, "--age-cache", cache)
        assert outcome.status == 0, outcome.err
        assert ("age features are kept" in outcome.out) == (name == "with")
        assert ("age features of earlier epochs or runs are used" in outcome.out) == (name in ("again", "ahead"))
    logs = {
        name: [event for event in read_log(tmp_path / name) if event["event"] == "train"]
        for name in ("without", "with", "again")
    }
    for term in ("age_loss", "log_likelihood", "face_recognition_loss"):
        values = {name: [event[term] for event in events] for name, events in logs.items()}
        assert values["with"][0] == pytest.approx(values["without"][0], rel=2e-4)
        assert values["with"] == pytest.approx(values["without"], rel=1e-3)
        assert values["again"] == values["with"]
    assert logs["with"][0]["log_likelihood"] != logs["without"][0]["log_likelihood"]  # it was rounded
    assert same_weights(tmp_path / "with" / "iefp.pth", tmp_path / "ahead" / "iefp.pth")


def test_the_frozen_branch_is_not_asked_again_for_what_the_cache_knows(train_identity, tmp_path, monkeypatch):
    stage, asked = load_script("train").IdentityStage, []
    compute = stage.age_features
    monkeypatch.setattr(stage, "age_features", lambda self, images: asked.append(len(images)) or compute(self, images))
    assert train_identity(tmp_path / "run", "--epochs", 4, "--cache-folder", tmp_path / "cache").status == 0
    assert asked == [6] * 6  # both views of 18 pictures in the first epoch


def test_other_age_weights_get_a_cache_of_their_own(train_identity, tmp_path):
    flags = ("--epochs", 3, "--cache-folder", tmp_path / "cache")
    assert train_identity(tmp_path / "a", *flags).status == 0
    torch.manual_seed(9)
    torch.save(age_file_tensors(IEFP("iresnet18_quarter", 1, None)), tmp_path / "other.pth")
    outcome = train_identity(tmp_path / "b", *flags, "--age-weights", tmp_path / "other.pth")
    assert outcome.status == 0 and "age features are kept" in outcome.out
    assert len(list((tmp_path / "cache").glob("*_age_features_*"))) == 2


def test_a_record_file_with_ages_trains_as_its_folder_does(train_identity, tiny_faces, tmp_path):
    index = index_identity_folders(training_set(tiny_faces), FILENAME_PATTERNS["ms1mv3"])
    pack_folder(index, tmp_path / "records" / "train.rec")
    assert train_identity(tmp_path / "a", "--epochs", 1).status == 0
    outcome = train_identity(tmp_path / "b", "--epochs", 1, "--train-data", tmp_path / "records" / "train.rec")
    assert outcome.status == 0, outcome.err
    assert same_weights(tmp_path / "a" / "iefp.pth", tmp_path / "b" / "iefp.pth")


def test_ages_may_come_from_a_table(train_identity, tiny_faces, tmp_path):
    nameless = tmp_path / "nameless"
    lines = ["path,age"]
    for path in sorted(training_set(tiny_faces).glob("*/*.jpg")):
        number, age = path.stem.split("_age_")
        target = nameless / path.parent.name / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        lines.append(f"{path.parent.name}/{number}.jpg,{age}")
    (tmp_path / "ages.csv").write_text("\n".join(lines) + "\n")
    assert train_identity(tmp_path / "a", "--epochs", 1).status == 0
    flags = ("--epochs", 1, "--train-data", nameless)
    assert "00000000.jpg" in train_identity(tmp_path / "b", *flags).err
    assert train_identity(tmp_path / "b", *flags, "--ages", tmp_path / "ages.csv").status == 0
    assert same_weights(tmp_path / "a" / "iefp.pth", tmp_path / "b" / "iefp.pth")


# -------------------------------------------------------------------------------------------------- ages in years


def test_the_head_for_years_learns_is_told_in_years_and_groups_and_goes_into_the_file(run_main, tiny_faces, tmp_path):
    flags = ("--stage", "age", "--train-data", training_set(tiny_faces), *SMALL, "--run-folder", tmp_path / "age")
    years = ("--age-head", "years", "--mean-loss-weight", 0.2, "--variance-loss-weight", 0.05)
    assert run_main("train", *flags, "--epochs", 8, *years).status == 0
    events = [event for event in read_log(tmp_path / "age") if event["event"] == "train"]
    assert events[-1]["year_loss"] < 0.9 * events[0]["year_loss"]
    assert {"age_mae_years", "by_years_age_group_mae", "by_years_age_group_accuracy_percent"} <= events[0].keys()
    model = load_for_ages(tmp_path / "age" / "age.pth")
    assert model.year_head is not None
    age_branch_alone = IEFP("iresnet18_quarter", 1, None)
    load_age_branch(age_branch_alone, tmp_path / "age" / "age.pth")  # a reader that knows no years passes them over
    assert torch.equal(age_branch_alone.age_estimator.weight, model.age_estimator.weight)


def test_stage_age_without_ages_says_what_to_give(run_main, tiny_faces, tmp_path):
    index = index_identity_folders(training_set(tiny_faces), None)
    pack_folder(index, tmp_path / "train.rec")
    flags = ("--stage", "age", "--train-data", tmp_path / "train.rec", *SMALL, "--run-folder", tmp_path / "age")
    outcome = run_main("train", *flags)
    assert outcome.status == 2 and "without an age" in outcome.err and "--ages" in outcome.err


def test_changes_beside_the_flip_repeat_and_switch_the_cache_off_with_a_sentence(train_identity, tmp_path):
    flags = ("--epochs", 3, "--augmentation", "changes", "--cache-folder", tmp_path / "cache")
    for name in ("a", "b"):
        outcome = train_identity(tmp_path / name, *flags)
        assert outcome.status == 0 and "no age features are cached: with --augmentation changes" in outcome.out
    assert same_weights(tmp_path / "a" / "iefp.pth", tmp_path / "b" / "iefp.pth")
    assert train_identity(tmp_path / "c", "--epochs", 3, "--age-cache", "off").status == 0
    assert not same_weights(tmp_path / "a" / "iefp.pth", tmp_path / "c" / "iefp.pth")
