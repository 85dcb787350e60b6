"""Flags of all scripts: what changes nothing is refused, and all that can be wrong is found before anything is done."""

import dataclasses
import os
import shutil
import typing
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image
from scripts import ROOT, TINY, load_script

from data.faces import index_pictures
from data.loaders import evaluation_loader
from meta import UserError
from models.disentangle.registry import CRITICS
from models.iefp import IEFP
from models.weights import age_file_tensors, load_for_embedding, read_weight_file
from training import setup
from utils.cli import Either, Without, available_cores, given, parse_config, run_script

SCRIPTS = {"train": "TrainConfig", "test": "TestConfig", "embed": "EmbedConfig", "export": "ExportConfig",
           "purify": "PurifyConfig"}  # fmt: skip
SUBCOMMANDS = {typing.get_args(one)[1].name: typing.get_args(one)[0] for one in
               typing.get_args(load_script("prepare").Subcommand)}  # fmt: skip
# Every class of settings, by the words that call it.
CLASSES = {(name,): getattr(load_script(name), config) for name, config in SCRIPTS.items()} | {
    ("prepare", name): one for name, one in SUBCOMMANDS.items()
}


def parse(line: str):
    script, *words = line.split()
    name = SCRIPTS.get(script, "Subcommand")
    return parse_config(getattr(load_script(script), name), words)


# ------------------------------------------------------------------------------------------ flags that change nothing


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("train --stage age --mean-loss-weight 0.2", "does nothing with --age-head groups: leave it out, or give "
         "--age-head years."),
        ("train --stage age --variance-loss-weight 0", "--variance-loss-weight does nothing with --age-head groups"),
        ("train --mean-loss-weight 0.2 --age-head years", "--mean-loss-weight, --age-head do nothing with --stage "
         "identity: leave them out, or give --stage age."),
        ("train --age-head groups", "--age-head does nothing with --stage identity"),
        ("train --stage age --estimator sampled --club-steps=1 --mutual_information_weight 1",
         "--estimator, --club-steps, --mutual-information-weight do nothing with --stage age"),
        ("train --stage age --margin arcface --margin-scale 64 --margin-value 0.3 --class-sampling-rate 0.5",
         "--margin, --margin-scale, --margin-value, --class-sampling-rate do nothing with --stage age"),
        ("train --stage age --age-cache off --age-weights x.pth",
         "--age-cache, --age-weights do nothing with --stage age"),
        ("train --disentangle none --club-weight 0.1", "--club-weight does nothing with --disentangle none"),
        ("train --disentangle none --age-cache ahead", "with --disentangle none, which uses no age features: leave it "
         "out, or give --disentangle iefp or dal."),
        ("train --augmentation changes --age-cache auto", "--age-cache does nothing with --augmentation changes"),
        ("train --mutual-information-weight 0 --mutual-information-warmup 5",
         "--mutual-information-warmup does nothing with --mutual-information-weight 0.0"),
        ("train --class-sampling-rate 1", "--class-sampling-rate does nothing without --sharded-classes"),
        ("train --max-bad-share 0.001", "--max-bad-share does nothing with --on-bad-image error: leave it out, or give "
         "--on-bad-image skip."),
        ("train --ages a.csv --names ms1mv3", "--names does nothing with --ages a.csv: leave it out."),
        ("train --validate-on fgnet", "--validate-on does nothing without --validate-every"),
        ("train --validate-every 9 --validate-on lfw.bin --face-dataset x", "--face-dataset does nothing with "
         "--validate-on lfw.bin"),
        ("train --schedule cosine --learning-rate-epochs 10 18 22", "--learning-rate-epochs does nothing with"),
        ("test --benchmarks calfw --distractors x", "--distractors does nothing without --benchmarks fgnet or "
         "--identity-folders: leave it out, or give --benchmarks fgnet or --identity-folders."),
        ("test --names ms1mv3", "--names does nothing without --identity-folders or --age-folder"),
        ("test --age-folder x --no-analysis", "--age-folder does nothing with --no-analysis"),
        ("test --age-folder x --names none", "--age-folder does nothing with --names none: leave it out, or give "
         "--names ms1mv3 or fgnet or morph2 or utkface."),
        ("test --benchmarks fgnet --morph2-subjects 500", "--morph2-subjects does nothing with --benchmarks fgnet"),
        ("test --benchmarks fgnet --allow-missing",
         "--allow-missing does nothing without --benchmarks cacd_vs or calfw or --pairs"),
        ("test --no-analysis --seed 0", "--seed does nothing without --analysis or --morph2-subjects"),
        ("test --no-analysis --no-pictures", "--no-pictures does nothing with --no-analysis"),
        ("test --no-keep-embeddings --cache-folder x", "--cache-folder does nothing with --no-keep-embeddings"),
        ("test --group a x.pth --weights y.pth", "--group does nothing with --weights y.pth, since a group names its "
         "own files: leave it out."),
        ("test --embeddings x.npz --group a x.pth", "--group does nothing with --embeddings x.npz"),
        ("test --embeddings x.npz --batch-size 64", "--batch-size does nothing without --weights"),
        ("embed a.jpg b.jpg -o x.npz --far 1e-3", "--far does nothing with --output x.npz"),
        ("embed a.jpg b.jpg --top 3", "--top does nothing without --gallery"),
        ("embed a.jpg --gallery g.npz --ages 3 4", "--ages does nothing with --gallery g.npz"),
        ("embed a.jpg b.jpg --force", "--force does nothing without --output"),
        ("export --check x.onnx --views one", "--views does nothing with --check x.onnx, since the metadata of"),
        ("export -o x.onnx --calibration-count 5", "--calibration-count does nothing without --calibration-pictures"),
        ("export -o x.onnx --face-dataset x", "--face-dataset does nothing without --measure-on"),
        ("export -o x.onnx --workers 2", "--workers does nothing without --calibration-pictures or --measure-on"),
        ("export -o x.onnx --batch-size 2", "--batch-size does nothing without"),
        ("prepare ages --data x --from-table t.csv --output o.csv --undo-file u", "--undo-file does nothing without "
         "--rename: leave it out, or give --rename."),
        ("prepare ages --data x --weights w.pth --output o.csv --allow-unknown", "--allow-unknown does nothing without "
         "--from-table"),
        ("prepare ages --data x --from-table t.csv --output o.csv --on-bad-image error --device cpu --assume-aligned",
         "--on-bad-image, --device, --assume-aligned do nothing without --weights"),
        ("prepare ages --data x --from-names fgnet --rename --force", "--force does nothing without --output or "
         "--histogram"),
        ("prepare ages --undo u.jsonl --data x --output y", "--data, --output do nothing with --undo u.jsonl"),
        ("prepare check --force", "--force does nothing without --json"),
        ("prepare bin --pairs x --images x --output y --assume-aligned", "--assume-aligned does nothing without "
         "--reencode: leave it out, or give --reencode."),
        ("prepare unpack --names plain --ages t.csv", "--ages does nothing with --names plain"),
        ("prepare align-morph2 --raw x --subjects s.csv --seed 0", "--seed does nothing with --subjects s.csv"),
        ("purify --weights w --data x -o p.pth --ages a.csv --names fgnet", "--names does nothing with --ages a.csv"),
        ("purify --weights w --data x -o p.pth --basis groups --knots 0 9", "--knots does nothing with --basis groups"),
        ("purify --weights w --data x -o p.pth --no-keep-embeddings --cache-folder x", "--cache-folder does nothing "
         "with --no-keep-embeddings"),
    ],
)  # fmt: skip
def test_a_flag_that_changes_nothing_beside_the_others_is_one_sentence_that_says_why(line, sentence):
    """6: a flag given explicitly that changes nothing, also with the value that is the default, is an error."""
    with pytest.raises(UserError) as refused:
        parse(line)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        "train --stage age --age-head years --mean-loss-weight 0.2 --ages a.csv",
        "train --disentangle dal --age-cache ahead --disentangle-weight 0.1",
        "train --disentangle grl --age-weights age.pth",
        "train --disentangle none --no-sharded-classes --margin-values None",  # not set: a way to undo a recipe's
        "train --validate-every 9 --validate-on lfw.bin calfw --face-dataset x",
        "train --on-bad-image skip --max-bad-share 0.1",
        "test --identity-folders x --names none --benchmarks --distractors y",
        "test --age-folder x y --names utkface --benchmarks",
        "test --embeddings x.npz --weights w.pth --batch-size 8 --workers 0",
        "test --no-analysis --seed 4 --morph2-subjects 20",
        "embed a.jpg b.jpg --far 1e-2 --ages 3 40 --benchmark fgnet",
        "embed a.jpg --gallery g.npz --top 3 --far 1e-2",
        "embed a.jpg -o x.npz --force --json",
        "export --check x.onnx --batch-size 4",
        "export -o x.onnx --measure-on fgnet --face-dataset x --workers 0",
        "prepare ages --data x --from-table t.csv --rename --undo-file u --allow-unknown",
        "prepare ages --undo u.jsonl --dry-run",
        "prepare align-morph2 --raw x --subjects s.csv --ages a.csv --training-folder t",
    ],
)
def test_a_flag_that_changes_something_is_taken(line):
    """6: what has an effect is no error."""
    parse(line)


def test_all_flags_of_a_recipe_that_change_nothing_are_named_with_its_file():
    """6: the sentence says which file they stand in, so that it is plain what to leave out where."""
    recipe = ROOT / "recipes" / "published.args"
    with pytest.raises(UserError) as refused:
        parse(f"train @{recipe} --disentangle none")
    flags = "--estimator, --mutual-information-weight, --mutual-information-warmup, --club-weight, --club-steps"
    assert str(refused.value) == (f"{flags} in {recipe} do nothing with --disentangle none: leave them out, or give "
                                  f"--disentangle iefp.")  # fmt: skip


def test_equal_settings_keep_apart_which_flags_were_given():
    """Two command lines may mean the same, and only one of them give a flag."""
    without, with_flag = parse("test"), parse("test --benchmarks fgnet morph2 cacd_vs calfw")
    assert without == with_flag
    assert "benchmarks" in given(with_flag) and "benchmarks" not in given(without)


def test_what_was_given_is_known_in_every_spelling_and_with_its_source(tmp_path):
    """6: --name value, --name=value, --name_with_underscore, --no-name, -o FILE, -oFILE, @FILE; not behind "--"."""
    (tmp_path / "some.args").write_text("--batch-size 3 --json")
    config = parse(f"embed --device=cpu @{tmp_path / 'some.args'} -ox.npz --no-assume-aligned -- --force --top")
    recipe = str(tmp_path / "some.args")
    expected = {"device": None, "batch_size": recipe, "json": recipe, "output": None}
    assert {name: source for name, source in given(config).items() if name != "pictures"} == expected
    of_python = dataclasses.replace(config, top=7)  # made in Python: what differs from the default
    assert {"top", "output", "batch_size"} <= set(given(of_python)) and "far" not in given(of_python)


@pytest.mark.parametrize("words", CLASSES, ids=" ".join)
def test_the_table_names_fields_and_values_that_there_are(words):
    """6: a slip in a table of needs would make a rule that never holds, or always."""
    config_class = CLASSES[words]
    hints = typing.get_type_hints(config_class)
    for name, conditions in getattr(config_class, "NEEDS", {}).items():
        assert name in hints
        for condition in conditions:
            for one in condition.conditions if isinstance(condition, Either) else (condition,):
                assert one.other in hints, f"{name} needs {one.other}"
                assert not (isinstance(one, Without) and one.values)
                hint = hints[one.other]
                for part in (hint, *typing.get_args(hint)):
                    if typing.get_origin(part) is Literal:
                        assert set(one.values) <= set(typing.get_args(part)), f"{name} needs {one.other}"


def test_the_age_cache_has_an_effect_with_those_critics_that_need_age_features():
    """6: the table repeats in words what the critics say of themselves."""
    needing = {name for name, critic in CRITICS.items() if critic.needs_age_features}
    condition = next(one for one in CLASSES["train",].NEEDS["age_cache"] if one.other == "disentangle")
    assert set(condition.values) == needing


def test_names_of_files_that_a_record_file_does_not_have_are_refused(run_main, tiny_faces, tmp_path):
    """6: --names with a record file, given as a file or as its folder."""
    folder = tiny_faces / "ms1mv3_256times256_with_age"
    assert run_main("prepare", "pack", "--data", folder, "--output", tmp_path / "packed" / "train.rec").status == 0
    for place in (tmp_path / "packed", tmp_path / "packed" / "train.rec"):
        outcome = run_main("train", "--train-data", place, "--names", "ms1mv3", "--run-folder", tmp_path / "run")
        assert outcome.status == 2 and "--names does nothing with the record file" in outcome.err
    assert not (tmp_path / "run").exists()


def test_benchmarks_that_were_named_are_all_that_is_tested_also_when_they_are_the_default_ones(tmp_path):
    """6, neighbour: --benchmarks with all four names was taken for not given, and .bin files were tested too."""
    test = load_script("test")
    (tmp_path / "lfw.bin").touch()
    every = "fgnet morph2 cacd_vs calfw"
    titles = {
        line: [setting.name for setting in test.settings_of(parse(f"test --face-dataset {tmp_path}{line}"))]
        for line in ("", f" --benchmarks {every}")
    }
    assert "lfw.bin" in titles[""] and "lfw.bin" not in titles[f" --benchmarks {every}"]


# ------------------------------------------------------------------------------------------------- wrong values


def wrong_values(hint) -> list[str]:
    """Values that a flag of this type can't take, whatever its bounds."""
    parts = [part for part in (hint, *typing.get_args(hint)) if part is not type(None)]
    if any(typing.get_origin(part) is Literal or part in (int, float) for part in parts):
        return [" nonsense"]
    return []  # paths and names: what they are is looked at later


def every_flag() -> list[tuple[tuple[str, ...], str, str]]:
    found = []
    for words, config_class in CLASSES.items():
        hints = typing.get_type_hints(config_class)
        for field in dataclasses.fields(config_class):
            flag, limits = "--" + field.name.replace("_", "-"), field.metadata
            for value in wrong_values(hints[field.name]):
                found.append((words, field.name, f"{flag}{value}"))
            for bound, beyond in (("low", -1), ("high", 1), ("above", 0)):
                if limits.get(bound) is not None:
                    count = len([part for part in typing.get_args(hints[field.name]) if part in (int, float)]) or 1
                    found.append((words, field.name, f"{flag} {' '.join([str(limits[bound] + beyond)] * count)}"))
    return found


@pytest.mark.parametrize("words", sorted({words for words, _, _ in every_flag()}), ids=" ".join)
def test_every_flag_with_a_wrong_value_is_status_2_and_nothing_is_written(words, run_main, tmp_path, monkeypatch):
    """6: all flags of all scripts, walked through: a wrong value ends with status 2 before anything is written."""
    monkeypatch.chdir(tmp_path)
    cases = [case for case in every_flag() if case[0] == words]
    needed = {
        "prepare bin": "--pairs x --images x --output x",
        "embed": "a.jpg",
        "purify": "--weights x --data x --output x",
        "prepare align": "x",
    }.get(" ".join(words), "")
    needed = "--raw x" if "align-" in words[-1] else needed
    for _, name, flags in cases:
        outcome = run_main(words[0], *words[1:], *needed.split(), *flags.split())
        assert outcome.status == 2, (flags, outcome)
        assert name.replace("_", "-") in outcome.err.replace("\n", "") and "Traceback" not in outcome.err, outcome.err
    assert list(tmp_path.iterdir()) == []


FILE = "README.md"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (f"train --run-folder {FILE}", "--run-folder"),
        (f"train --run-folder {FILE}/below/it", "--run-folder"),
        (f"train --cache-folder {FILE}", "--cache-folder"),
        (f"test --output {FILE}", "--output"),
        (f"test --cache-folder {FILE}", "--cache-folder"),
        (f"prepare unpack --output {FILE}", "--output"),
        (f"prepare ages --data x --from-names fgnet --link {FILE}", "--link"),
        (f"prepare align-fgnet --raw x --output {FILE}", "--output"),
        (f"prepare align x --landmarks x.csv --output {FILE}", "--output"),
        (f"prepare synthetic --output {FILE}", "--output"),
        ("prepare pack --output folder --force", "--output"),
        ("prepare bin --pairs x --images x --output folder --force", "--output"),
        ("prepare ages --data x --from-names fgnet --output folder --force", "--output"),
        ("prepare ages --data x --from-names fgnet --histogram folder --force", "--histogram"),
        ("prepare contact-sheet --output folder", "--output"),
        (f"prepare contact-sheet --output {FILE}/sheet.png", "--output"),
        ("prepare check --json folder --force", "--json"),
        ("embed a.jpg -o folder --force", "--output"),
        ("export -o folder", "--output"),
        ("purify --weights w.pth --data x -o folder", "--output"),
    ],
)
def test_a_folder_to_write_that_is_a_file_and_a_file_that_is_a_folder_are_one_sentence(
    line, named, run_main, tmp_path, monkeypatch
):
    """13: --run-folder README.md says what is wrong, and so do the places that the other scripts write to."""
    monkeypatch.chdir(tmp_path)
    Path(FILE).write_text("text")
    Path("folder").mkdir()
    script, *flags = line.split()
    outcome = run_main(script, *flags)
    assert outcome.status == 2 and f"{named} " in outcome.err, outcome.err
    assert "is no folder but a file" in outcome.err or "is a folder: give the name of a file" in outcome.err \
        or f"{FILE} is a file: give another place" in outcome.err  # fmt: skip
    assert "Errno" not in outcome.err and outcome.err.count("\n") == 1
    assert Path(FILE).read_text() == "text" and sorted(os.listdir()) == [FILE, "folder"]


# ----------------------------------------------------------------------------------------------- before what is costly


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Aligned pictures of 4 people, whose names hold no age."""
    for k in range(16):
        pixels = np.random.default_rng(k).integers(0, 256, (112, 112, 3), dtype=np.uint8)
        place = tmp_path / "people" / f"person {k // 4}" / f"{k}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return tmp_path / "people"


FROM_FLAGS = {
    "accumulation": ("--accumulation 4", "--accumulation 4 can't cut"),
    "best metric": ("--best-metric fgnet_rank1", "--best-metric fgnet_rank1 is not logged"),
    "backbone": ("--backbone iresnet9", "backbone 'iresnet9' is unknown"),
    "purification": ("--purification x_times_two", "purification 'x_times_two' is unknown"),
    "final rate": ("--schedule cosine --final-learning-rate 0.5", "--final-learning-rate 0.5 is above"),
    "start": ("--init-from none.pth", "none.pth does not exist"),
    "age branch": ("--age-weights none.pth", "none.pth does not exist"),
    "ages": ("--ages none.csv", "--ages none.csv is no file"),
    "benchmark": ("--validate-every 2 --validate-on nothing", "'nothing' is no benchmark"),
    "no benchmark": ("--validate-every 2", "--validate-every needs --validate-on"),
}
FROM_DATA = {
    "batch size": ("--batch-size 20", "do not fill one batch of 20"),
    "warm-up": ("--warmup-steps 3", "--warmup-steps 3 leaves nothing"),
    "another model": ("--purification 0", "are of another model"),
    "nothing fits": ("--init-from AGE --run-folder NEW", "nothing in"),
}


@pytest.mark.parametrize("what", FROM_FLAGS)
def test_what_is_wrong_with_flags_alone_is_reported_before_listing_pictures(
    what, train_identity, tmp_path, monkeypatch
):
    """5c: names, divisors, rates and small files are looked at before a data set is."""
    flags, sentence = FROM_FLAGS[what]

    def not_yet(*_):
        raise AssertionError("pictures were listed")

    monkeypatch.setattr(setup, "open_pictures", not_yet)
    outcome = train_identity(tmp_path / "run", *flags.split())
    assert outcome.status == 2 and sentence in outcome.err
    assert not (tmp_path / "run").exists()


# Each with a function of the script's modules that lists pictures or builds a model: it must not be reached.
BEFORE_WORK = [
    ("prepare unpack --records PACKED --ages none.csv", "--ages none.csv is no file", "script_prepare.open_index"),
    ("prepare pack --data PEOPLE --ages none.csv", "--ages none.csv is no file", "script_prepare.open_index"),
    ("prepare pack --data PEOPLE --output x.txt", "ends in .rec", "script_prepare.open_index"),
    ("prepare pack --data PACKED --from-names fgnet --output new.rec", "have no names: leave out --from-names",
     "script_prepare.open_index"),
    ("prepare ages --data PEOPLE --from-table none.csv --output x.csv", "--from-table none.csv is no file",
     "script_prepare.open_index"),
    ("prepare ages --data PEOPLE --weights none.pth --output x.csv", "none.pth does not exist",
     "script_prepare.open_index"),
    ("prepare ages --data PEOPLE --weights WEIGHTS --device nowhere --output x.csv", "--device nowhere is no device",
     "script_prepare.open_index"),
    ("prepare ages --data PACKED --weights WEIGHTS --link x", "have no names: use --output",
     "script_prepare.open_index"),
    ("prepare ages --data PEOPLE --weights WEIGHTS --device cpu --link PEOPLE/x", "lies in the folder of the pictures",
     "script_prepare.open_index"),
    ("prepare bin --pairs none.txt --images PEOPLE --output x.bin", "none.txt is no file",
     "data.releases.packed_files.read_any_pair_list"),
    ("prepare align-morph2 --raw PEOPLE --counts 5 3", "--counts 5 3: give the smaller number first",
     "data.releases.morph2.plan_morph2"),
    ("prepare align-morph2 --raw PEOPLE --subjects none.csv", "--subjects none.csv is no file",
     "data.releases.morph2.plan_morph2"),
    ("prepare align-cacd --raw PEOPLE --landmarks none.csv", "--landmarks none.csv is no file",
     "data.releases.cacd.plan_cacd"),
    ("prepare align-cacd --raw PEOPLE --already-aligned --training-folder ../x", "../x is not below --output",
     "data.releases.cacd.plan_cacd"),
    ("prepare align-cacd --raw PEOPLE --already-aligned --landmarks x.csv", "--landmarks does nothing with "
     "--already-aligned", "data.releases.cacd.plan_cacd"),
    ("embed PEOPLE -o x.npz --weights none.pth", "none.pth does not exist", "script_embed.list_pictures"),
    ("embed PEOPLE --gallery none.npz", "--gallery none.npz is no file", "script_embed.list_pictures"),
    ("embed PEOPLE PEOPLE --far 0.2", "--far 0.2 is no rate that test.py calibrates", "script_embed.list_pictures"),
    ("embed PEOPLE -o x.npz --landmarks none.csv", "--landmarks none.csv is no file", "script_embed.list_pictures"),
    ("export -o x.safetensors --weights none.pth --measure-on fgnet", "none.pth does not exist",
     "script_export.open_figure"),
    ("export --check none.onnx --weights WEIGHTS --measure-on fgnet", "--check none.onnx is no file",
     "script_export.open_figure"),
    ("test --weights WEIGHTS none.pth", "none.pth does not exist", "script_test.open_models"),
    ("test --weights WEIGHTS --embeddings none.npz", "--embeddings none.npz does not exist",
     "script_test.open_models"),
    ("test --weights WEIGHTS --distractors none.npz", "--distractors none.npz does not exist",
     "script_test.open_models"),
    ("test --group a WEIGHTS --group b none.pth", "none.pth does not exist", "script_test.open_models"),
    ("test --group a WEIGHTS --group b none.npz", "--group none.npz does not exist", "script_test.open_models"),
    ("test --group a WEIGHTS --group b none.pth PEOPLE", "they are paired by order", "script_test.open_models"),
    ("test --weights WEIGHTS --morph2-subjects 20 20", "is asked for twice", "script_test.open_models"),
    ("test --weights WEIGHTS --onnx-input bgr", "--onnx-input does nothing, for none", "script_test.open_models"),
    ("purify --weights none.pth --data PEOPLE -o x.pth", "none.pth does not exist", "script_purify.open_source"),
    ("purify --weights WEIGHTS --data nowhere -o x.pth", "--data nowhere does not exist", "script_purify.open_source"),
    ("purify --weights WEIGHTS --data PEOPLE -o x.onnx", "-o x.onnx does not end in", "script_purify.open_source"),
    ("purify --weights WEIGHTS --data PEOPLE -o x/x.pth", "the folder x of -o", "script_purify.open_source"),
    ("purify --weights WEIGHTS --data PEOPLE -o WEIGHTS --force", "is the --weights themselves",
     "script_purify.open_source"),
    ("purify --weights WEIGHTS --data PEOPLE -o x.pth --ages none.csv", "--ages none.csv is no file",
     "script_purify.open_source"),
    ("purify --weights WEIGHTS --data PEOPLE -o x.pth --knots 9 5", "are not ascending", "script_purify.open_source"),
    ("purify --weights WEIGHTS --data PEOPLE -o x.pth --device nowhere", "--device nowhere is no device",
     "script_purify.open_source"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "sentence", "work"), BEFORE_WORK, ids=[line for line, _, _ in BEFORE_WORK])
def test_a_mistake_in_the_flags_is_found_before_the_work(
    line, sentence, work, run_main, photographs, weights, tmp_path, monkeypatch
):
    """Missing files, devices and names come before listing pictures and building models, in the other scripts too."""
    for name in ("prepare", "embed", "export", "test", "purify"):
        load_script(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packed.rec").touch()
    before = sorted(tmp_path.rglob("*"))

    def too_late(*_, **__):
        raise AssertionError(f"{work} was reached")

    monkeypatch.setattr(work, too_late)
    places = {"PEOPLE": str(photographs), "PACKED": str(tmp_path / "packed.rec"), "WEIGHTS": str(weights)}
    for name, place in places.items():
        line = line.replace(name, place)
    outcome = run_main(*line.split())
    assert outcome.status == 2 and sentence in outcome.err and outcome.err.count("\n") == 1, outcome
    assert [path for path in sorted(tmp_path.rglob("*")) if ".iefp_cache" not in str(path)] == before


def test_a_folder_that_cannot_take_the_pictures_is_found_before_ages_are_estimated(
    run_main, photographs, weights, tmp_path, monkeypatch
):
    """A folder of --link with other things in it ended the work of hours at its end."""
    (tmp_path / "mine" / "letters").mkdir(parents=True)

    def too_late(*_, **__):
        raise AssertionError("ages were estimated")

    monkeypatch.setattr(load_script("prepare"), "estimate_ages", too_late)
    outcome = run_main("prepare", "ages", "--data", photographs, "--weights", weights, "--device", "cpu", "--link",
                       tmp_path / "mine")  # fmt: skip
    assert outcome.status == 2 and "holds 'letters', which is none of these pictures' folders" in outcome.err


def test_no_cache_is_touched_before_all_is_found_right(train_identity, tiny_faces, age_weights, tmp_path):
    """5c: a run with any wrong flag, and another age branch, leaves the caches beside the data as they are."""
    cache, run, data = tmp_path / "cache", tmp_path / "run", tmp_path / "data"
    shutil.copytree(tiny_faces / "ms1mv3_256times256_with_age", data)
    for folder in (data, *data.iterdir()):
        os.utime(folder, (10**9, 10**9))  # the list of folders that have just changed is not cached
    common = ("--train-data", data, "--cache-folder", cache, "--epochs", 1, "--age-cache", "ahead")
    assert train_identity(run, *common).status == 0
    torch.manual_seed(11)
    torch.save(age_file_tensors(IEFP(TINY, 1, None)), tmp_path / "other.pth")

    def content() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}

    before = content()
    assert any("age_features" in str(path) for path in before) and any(path.suffix == ".npz" for path in before)
    for flags, sentence in (FROM_FLAGS["accumulation"], FROM_FLAGS["best metric"], *FROM_DATA.values()):
        places = {"AGE": str(age_weights), "NEW": str(tmp_path / "new")}
        given_flags = [places.get(word, word) for word in flags.split()]
        others = ("--age-weights", tmp_path / "other.pth", "--override-config")
        outcome = train_identity(run, *common, *others, *given_flags)
        assert outcome.status == 2 and sentence in outcome.err, outcome
        assert content() == before, flags
    assert train_identity(tmp_path / "good", *common, "--age-weights", tmp_path / "other.pth").status == 0
    assert content() != before  # of a run that is right


# ----------------------------------------------------------------------------------------------- what is not needed


@pytest.mark.parametrize("method", ["none", "grl", "orthogonal"])
def test_a_method_without_age_features_trains_without_age_weights(method, run_main, tiny_faces, tmp_path, monkeypatch):
    """8: no --age-weights file is asked for; what is written has no age branch, and every script takes it."""
    monkeypatch.chdir(tmp_path)
    data = tiny_faces / "ms1mv3_256times256_with_age"
    flags = ("--train-data", data, *SMALL, "--disentangle", method, "--run-folder", "run", "--epochs", 1)
    outcome = run_main("train", *flags)
    assert outcome.status == 0, outcome.err
    assert f"no age branch in the weights: --disentangle {method} needs none" in outcome.out
    weights = read_weight_file("run/iefp.pth")
    assert weights.age_branch is None and weights.identity_branch is not None
    assert not any(key.startswith(("backbone_ae.", "age_estimator.")) for key in weights.tensors)
    assert not load_for_embedding("run/iefp.pth")[1]
    checkpoint = next(Path("run/checkpoints").glob("step_*.pt*"))
    assert read_weight_file(checkpoint).age_branch is None
    if method != "none":
        return
    pictures = sorted((tiny_faces / "ID_processed_FGNET" / "001").iterdir())[:2]
    outcome = run_main("test", "--weights", "run/iefp.pth", "--face-dataset", tiny_faces, "--benchmarks", "fgnet",
                       "--no-analysis", "--no-keep-embeddings", "--workers", 0, "--device", "cpu")  # fmt: skip
    assert outcome.status == 0 and "holds no age branch" in outcome.out
    for script, *flags in (("embed", *pictures, "--assume-aligned", "--device", "cpu", "--far", 0.1),
                           ("export", "-o", "run/iefp.safetensors")):  # fmt: skip
        assert run_main(script, *flags, "--weights", "run/iefp.pth").status == 0


def test_the_identity_branch_is_the_same_with_and_without_age_weights_and_a_run_goes_on_when_they_come_or_go(
    run_main, tiny_faces, age_weights, tmp_path, monkeypatch
):
    """8: the file decides what is written beside the identity branch, and nothing else."""
    monkeypatch.chdir(tmp_path)
    data, train = tiny_faces / "ms1mv3_256times256_with_age", load_script("train")
    common = ("--train-data", data, *SMALL, "--disentangle", "none", "--learning-rate-epochs", 9, "--epochs")

    def tensors(folder: str) -> dict:
        return {key: value for key, value in read_weight_file(f"{folder}/iefp.pth").tensors.items()
                if key.startswith(("backbone_id.", "margin_fc."))}  # fmt: skip

    def equal(a: dict, b: dict) -> bool:
        return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)

    assert run_main("train", *common, 2, "--run-folder", "without").status == 0
    default = Path(train.TrainConfig.age_weights)
    for there_first in (False, True):
        folder = f"there first {there_first}"
        for epochs, is_there in ((1, there_first), (2, not there_first)):
            shutil.rmtree(default.parent, ignore_errors=True)
            if is_there:
                default.parent.mkdir()
                shutil.copy(age_weights, default)
            override = ("--override-config",) if epochs == 2 else ()
            outcome = run_main("train", *common, epochs, "--run-folder", folder, *override)
            assert outcome.status == 0, outcome.err
        assert equal(tensors(folder), tensors("without"))
        assert (read_weight_file(f"{folder}/iefp.pth").age_branch is not None) == is_there
    outcome = run_main("train", *common, 1, "--age-weights", "none.pth", "--run-folder", "asked")
    assert outcome.status == 2 and "none.pth does not exist" in outcome.err  # one that was asked for has to be there


def test_pictures_without_ages_in_their_names_can_be_trained_on_where_no_age_is_needed(
    run_main, photographs, age_weights, tmp_path
):
    """10: with IEFP too, by --names none: its age features come from the frozen branch. What needs ages says so."""
    common = ("--train-data", photographs, *SMALL, "--epochs", 1, "--age-weights", age_weights)
    for method, names in (("none", ()), ("iefp", ("--names", "none"))):
        folder = tmp_path / method
        outcome = run_main("train", *common, *names, "--disentangle", method, "--run-folder", folder)
        assert outcome.status == 0, outcome.err
        said = "has no age in its name: no age is used, and --disentangle none needs none"
        assert (said in outcome.out) == (method == "none")
        assert (folder / "iefp.pth").is_file()
    outcome = run_main("train", *common, "--names", "none", "--disentangle", "grl", "--run-folder", tmp_path / "grl")
    assert outcome.status == 2 and "which --disentangle grl needs: give --ages" in outcome.err
    for flags, words in ((("--names", "ms1mv3", "--disentangle", "none"), "or leave it out.\n"),
                         ((), "or leave it out; --names none trains without ages."),
                         (("--age-prior", 1), "--age-prior needs ages, and "),
                         (("--disentangle", "orthogonal"), "or give --ages with a table of them.")):  # fmt: skip
        outcome = run_main("train", *common, *flags, "--run-folder", tmp_path / "refused")
        assert outcome.status == 2 and words in outcome.err and not (tmp_path / "refused").exists(), outcome
    outcome = run_main("train", *common[:-2], "--names", "none", "--stage", "age", "--run-folder", tmp_path / "age")
    assert outcome.status == 2 and "which --stage age needs: give --ages" in outcome.err


# ------------------------------------------------------------------------------------------------ words and workers


def test_no_script_asks_for_more_workers_than_there_are_cores_and_who_does_hears_nothing_of_torch(photographs):
    """13: the defaults fit a small machine, and torch's warning with file and line is not for users."""
    for config_class in CLASSES.values():
        workers = [field.default for field in dataclasses.fields(config_class) if field.name == "workers"]
        assert all(default <= available_cores() for default in workers), config_class

    def make_loader() -> None:
        evaluation_loader(index_pictures(photographs), 4, workers=available_cores() + 1)

    with pytest.warns(UserWarning, match="worker processes in total"):
        make_loader()  # not by a script: torch says it
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        warnings.simplefilter("error")
        run_script(make_loader)
    assert ended.value.code == 0


def test_an_age_table_about_other_pictures_leads_to_a_command_that_there_is(run_main, photographs, tmp_path):
    """16: train.py has no --allow-unknown; the advice names the command that has it, which does what is promised."""
    names = sorted(path.relative_to(photographs).as_posix() for path in photographs.rglob("*.png"))
    table = tmp_path / "ages.csv"
    table.write_text("".join(f"{name},30\n" for name in [*names, "nobody/1.png"]))
    outcome = run_main("train", "--train-data", photographs, "--ages", table, "--run-folder", tmp_path / "run", *SMALL,
                       "--disentangle", "none")  # fmt: skip
    assert outcome.status == 2 and "--from-table and --allow-unknown" in outcome.err
    assert "'python prepare.py ages' with" in outcome.err
    made = ("--data", photographs, "--from-table", table, "--output", tmp_path / "new.csv", "--allow-unknown")
    assert run_main("prepare", "ages", *made).status == 0
    assert len((tmp_path / "new.csv").read_text().splitlines()) == 1 + len(names)


def test_export_does_not_advise_a_flag_that_it_has_not(run_main, tiny_faces, weights, tmp_path):
    """16, neighbour: a missing picture of --measure-on led to --allow-missing, which export.py doesn't have."""
    shutil.copytree(tiny_faces / "CALFW", tmp_path / "faces" / "CALFW")
    next((tmp_path / "faces" / "CALFW" / "processed_CALFW_2").iterdir()).unlink()
    outcome = run_main("export", "--weights", weights, "-o", tmp_path / "x.safetensors", "--measure-on", "calfw",
                       "--face-dataset", tmp_path / "faces")  # fmt: skip
    assert outcome.status == 2 and "--allow-missing" not in outcome.err and "lacks 1 pictures" in outcome.err
