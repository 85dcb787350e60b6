"""train.py on a tiny set: what it writes, that it repeats to the bit, bad input, the cache of age features, years."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from scripts import TINY, load_script

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


def test_both_stages_write_what_test_py_and_the_next_stage_read(run_main, train_identity, tiny_faces, tmp_path):
    flags = ("--stage", "age", "--run-folder", tmp_path / "age", "--train-data", training_set(tiny_faces), *SMALL)
    assert run_main("train", *flags, "--epochs", 1).status == 0
    run = tmp_path / "identity"
    assert train_identity(run, "--epochs", 1, "--age-weights", tmp_path / "age" / "age.pth").status == 0
    model, has_age_branch = load_for_embedding(run / "iefp.pth")
    assert has_age_branch and model.backbone_id.backbone == TINY
    age_file = torch.load(tmp_path / "age" / "age.pth", weights_only=True)
    for key, value in model.state_dict().items():  # the age branch came through stage identity untouched
        if key.startswith("backbone_ae."):
            assert torch.equal(value, age_file[key.replace("backbone_ae.", "backbone.")]), key
    events = read_log(run)
    assert [event["event"] for event in events] == ["start", "train", "train", "train", "end"]
    assert {"face_recognition_loss", "mutual_information", "log_likelihood", "age_loss"} <= events[1].keys()
    assert list((run / "tensorboard").iterdir())
    assert json.loads((run / "config.json").read_text())["epochs"] == 1


def test_the_same_seed_repeats_to_the_bit_from_records_or_a_table_of_ages_too_and_another_does_not(
    train_identity, plain_run, tiny_faces, tmp_path
):
    pack_folder(index_identity_folders(training_set(tiny_faces), FILENAME_PATTERNS["ms1mv3"]), tmp_path / "train.rec")
    nameless, lines = tmp_path / "nameless", ["path,age"]
    for path in sorted(training_set(tiny_faces).glob("*/*.jpg")):
        number, age = path.stem.split("_age_")
        target = nameless / path.parent.name / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        lines.append(f"{path.parent.name}/{number}.jpg,{age}")
    (tmp_path / "ages.csv").write_text("\n".join(lines) + "\n")
    assert "00000000.jpg" in train_identity(tmp_path / "table", "--train-data", nameless).err
    ways = {
        "records": ("--train-data", tmp_path / "train.rec"),
        "table": ("--train-data", nameless, "--ages", tmp_path / "ages.csv"),
        "seed": ("--seed", 2),
    }
    for name, flags in ways.items():
        outcome = train_identity(tmp_path / name, "--epochs", 1, *flags)
        assert outcome.status == 0, outcome.err
        assert same_weights(plain_run / "iefp.pth", tmp_path / name / "iefp.pth") == (name != "seed"), name


def test_a_finished_run_started_again_changes_nothing(train_identity, plain_run, tmp_path):
    shutil.copytree(plain_run, tmp_path / "run")
    assert train_identity(tmp_path / "run", "--epochs", 1).status == 0
    assert same_weights(plain_run / "iefp.pth", tmp_path / "run" / "iefp.pth")
    assert sum(event["event"] == "train" for event in read_log(tmp_path / "run")) == 3


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning-rate", "0"], "--learning-rate 0.0 is out of range: give a number above 0"),
        (["--batch-size", "1"], "--batch-size 1 is out of range"),
        (["--learning-rate-epochs", "3", "0"], "--learning-rate-epochs 0 is out of range"),
        (["--device", "tpu"], "--device tpu"),
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
    ("what", "words"),
    [
        ("truncated", "cannot be decoded"),
        ("no age", "00000000.jpg"),
        ("age of 121", "121"),
        ("one identity", "identit"),
        ("empty", "faces"),
    ],
)
def test_bad_pictures_are_one_sentence_and_status_2(train_identity, tiny_faces, tmp_path, what, words):
    folder = damage(tiny_faces, tmp_path, what)
    outcome = train_identity(tmp_path / "run", "--train-data", folder, "--epochs", 1)
    assert outcome.status == 2 and words in outcome.err and str(folder) in outcome.err, outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and "Traceback" not in outcome.err


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_flag(train_identity, tmp_path):
    outcome = train_identity(tmp_path / "run", "--epochs", 3, "--learning-rate", 1e38, "--clip-norm", 1e38)
    assert outcome.status == 2 and "lower --learning-rate" in outcome.err, outcome.err


# --------------------------------------------------------------------------------------------- age features, records


def test_with_the_cache_losses_are_those_without_within_its_rounding_and_its_features_are_computed_once(
    train_identity, tmp_path, monkeypatch
):
    """Features are rounded to 11 bits, 5e-4: losses by 2e-4 at first, 1e-3 after nine small steps."""
    stage, asked, logs = load_script("train").IdentityStage, [], {}
    compute = stage.age_features
    monkeypatch.setattr(stage, "age_features", lambda self, images: asked.append(len(images)) or compute(self, images))
    torch.manual_seed(9)
    torch.save(age_file_tensors(IEFP(TINY, 1, None)), tmp_path / "other.pth")
    flags = ("--epochs", 3, "--learning-rate", 0.001, "--cache-folder", tmp_path / "cache")
    once = [6] * 6  # both views of 18 pictures in the first epoch
    runs = (("without", "off", [6] * 9), ("with", "auto", once), ("again", "ahead", []), ("other", "auto", once))
    for name, cache, computed in runs:
        asked.clear()
        weights = ("--age-weights", tmp_path / "other.pth") if name == "other" else ()
        outcome = train_identity(tmp_path / name, *flags, "--age-cache", cache, *weights)
        assert outcome.status == 0 and asked == computed, outcome.err
        assert ("age features are kept" in outcome.out) == (name in ("with", "other"))
        assert ("age features of earlier epochs or runs are used" in outcome.out) == (name == "again")
        logs[name] = [event for event in read_log(tmp_path / name) if event["event"] == "train"]
    assert len(list((tmp_path / "cache").glob("*_age_features_*"))) == 2  # other weights have one of their own
    for term in ("age_loss", "log_likelihood", "face_recognition_loss"):
        values = {name: [event[term] for event in events] for name, events in logs.items()}
        assert values["with"][0] == pytest.approx(values["without"][0], rel=2e-4)
        assert values["with"] == pytest.approx(values["without"], rel=1e-3)
        assert values["again"] == values["with"]
    assert logs["with"][0]["log_likelihood"] != logs["without"][0]["log_likelihood"]  # it was rounded
    assert same_weights(tmp_path / "with" / "iefp.pth", tmp_path / "again" / "iefp.pth")


# -------------------------------------------------------------------------------------------------- ages in years


def test_the_head_for_years_learns_is_logged_in_years_and_groups_and_goes_into_the_file(run_main, tiny_faces, tmp_path):
    flags = ("--stage", "age", "--train-data", training_set(tiny_faces), *SMALL, "--run-folder", tmp_path / "age")
    years = ("--age-head", "years", "--mean-loss-weight", 0.2, "--variance-loss-weight", 0.05)
    assert run_main("train", *flags, "--epochs", 5, *years).status == 0
    events = [event for event in read_log(tmp_path / "age") if event["event"] == "train"]
    assert events[-1]["year_loss"] < 0.9 * events[0]["year_loss"]
    assert {"age_mae_years", "by_years_age_group_mae", "by_years_age_group_accuracy_percent"} <= events[0].keys()
    model = load_for_ages(tmp_path / "age" / "age.pth")
    assert model.year_head is not None
    age_branch_alone = IEFP(TINY, 1, None)
    load_age_branch(age_branch_alone, tmp_path / "age" / "age.pth")  # a reader that knows no years passes them over
    assert torch.equal(age_branch_alone.age_estimator.weight, model.age_estimator.weight)


def test_stage_age_without_ages_says_what_to_give(run_main, tiny_faces, tmp_path):
    index = index_identity_folders(training_set(tiny_faces), None)
    pack_folder(index, tmp_path / "train.rec")
    flags = ("--stage", "age", "--train-data", tmp_path / "train.rec", *SMALL, "--run-folder", tmp_path / "age")
    outcome = run_main("train", *flags)
    assert outcome.status == 2 and "without an age" in outcome.err and "--ages" in outcome.err


def test_changes_beside_the_flip_repeat_and_switch_the_cache_off_with_a_sentence(train_identity, plain_run, tmp_path):
    flags = ("--epochs", 3, "--augmentation", "changes", "--cache-folder", tmp_path / "cache")
    for name in ("a", "b"):
        outcome = train_identity(tmp_path / name, *flags)
        assert outcome.status == 0 and "no age features are cached: with --augmentation changes" in outcome.out
    assert same_weights(tmp_path / "a" / "iefp.pth", tmp_path / "b" / "iefp.pth")
    losses = [read_log(folder)[1]["face_recognition_loss"] for folder in (tmp_path / "a", plain_run)]
    assert losses[0] != losses[1]
