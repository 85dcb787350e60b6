"""prepare.py as a program: what it writes and says, and what it refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import TINY

from data.faces import index_identity_folders
from data.layout import DRAWN_FACES
from data.pairs import find_pair_list, read_pair_list
from data.transforms import to_network_input
from meta import AGE_GROUP_MIDDLES, BENCHMARKS, FILENAME_PATTERNS, IMAGE_SIZE, TRAINING_SETS
from models.iefp import IEFP
from models.weights import age_file_tensors

SMALL = ("--workers", 1, "--num-people", 2, "--pictures-per-person", 3,
         "--fgnet-people", 2, "--fgnet-pictures-per-person", 2, "--morph2-subjects", 2, 3,
         "--cacd-vs-pairs", 20, "--calfw-pairs", 20)  # fmt: skip


def pictures_in(folder: Path) -> int:
    return sum(path.suffix.lower() == ".jpg" for path in folder.rglob("*"))


def test_synthetic_draws_what_train_and_test_read_and_counts_it(run_main, tmp_path):
    root = tmp_path / "demo" / "face_dataset"
    outcome = run_main("prepare", "synthetic", "--output", root, *SMALL)
    assert outcome.status == 0, outcome.err
    again = run_main("prepare", "synthetic", "--output", root, *SMALL)
    assert again.status == 2 and str(root) in again.err and "not empty" in again.err
    counts = {Path(path).name: int(count) for path, count in re.findall(r"^(\S+): (\d+) pictures$", outcome.out, re.M)}
    assert counts == {folder.name: pictures_in(folder) for folder in root.iterdir()}
    assert all("none of these people exist" in (folder / DRAWN_FACES).read_text() for folder in root.iterdir())
    training = TRAINING_SETS["ms1mv3"]
    faces = index_identity_folders(root / training.folder, FILENAME_PATTERNS[training.pattern])
    assert (len(faces), faces.num_identities) == (6, 2)
    for benchmark in BENCHMARKS.values():
        for folder in benchmark.folders:
            if benchmark.pattern is not None:
                faces = index_identity_folders(root / folder, FILENAME_PATTERNS[benchmark.pattern])
                expected = {"probe_3000": 2, "gallery_3000": 2, "probe_10000": 3, "gallery_10000": 3}
                assert faces.num_identities == expected.get(Path(folder).name, 2)
            else:
                pairs = read_pair_list(find_pair_list(root, benchmark), root / folder)
                assert (len(pairs), pairs.genuine.sum()) == (20, 10)


def test_a_contact_sheet_has_a_row_a_person_and_a_column_an_age(run_main, tmp_path):
    path = tmp_path / "new" / "sheet.png"
    flags = ("--num-people", 2, "--ages", 5, 30, 70)
    outcome = run_main("prepare", "contact-sheet", "--output", path, *flags)
    assert (outcome.status, outcome.out) == (0, f"written: {path}\n")
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        margins = {side - IMAGE_SIZE * count for side, count in zip(sheet.size, (3, 2), strict=True)}
        assert len(margins) == 1 and 0 <= margins.pop() < IMAGE_SIZE
        first_face = np.array(sheet)[-2 * IMAGE_SIZE : -IMAGE_SIZE, -3 * IMAGE_SIZE : -2 * IMAGE_SIZE]
    assert first_face.std() > 10  # a picture, no blank
    first = path.read_bytes()
    for seed, is_same in ((0, True), (2, False)):
        assert (
            run_main("prepare", "contact-sheet", *flags, "--seed", seed, "--output", tmp_path / f"{seed}.png").status
            == 0
        )
        assert ((tmp_path / f"{seed}.png").read_bytes() == first) == is_same


def test_the_cacd_vs_list_goes_where_test_py_looks_for_it_and_is_not_replaced(run_main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_main("prepare", "cacd-vs-list")
    assert outcome.status == 0, outcome.err
    path = find_pair_list(tmp_path / "face_dataset", BENCHMARKS["cacd_vs"])
    assert path == tmp_path / "face_dataset" / BENCHMARKS["cacd_vs"].pair_lists[0]
    lines = path.read_text().splitlines()
    assert len(lines) == 4000
    for number, line in enumerate(lines):
        assert line == f"{number:04d}_0.jpg {number:04d}_1.jpg {int(number % 400 < 200)}"
    path.write_text("mine")
    outcome = run_main("prepare", "cacd-vs-list")
    assert outcome.status == 2 and "exists" in outcome.err and path.read_text() == "mine"


@pytest.mark.parametrize(("command", "flags", "words"), [
    ("synthetic", ["--morph2-subjects", 1, 3], "--morph2-subjects 1 is out of range"),
    ("synthetic", ["--morph2-subjects", 5, 3], "give the smaller number first"),
    ("synthetic", ["--cacd-vs-pairs", 30], "--cacd-vs-pairs 30 must be a multiple of 20"),
    ("synthetic", ["--calfw-pairs", 30], "--calfw-pairs 30 must be a multiple of 20"),
    ("synthetic", ["--nuisance", "nan"], "--nuisance nan is out of range"),
    ("contact-sheet", ["--ages", 20, 81], "--ages 81 is out of range"),
    ("contact-sheet", ["--ages"], "number of ages"),
    ("synthetic", ["@nowhere.args"], "argument file nowhere.args can't be read"),
])  # fmt: skip
def test_a_wrong_value_is_one_sentence_and_status_2_and_nothing_is_written(run_main, tmp_path, command, flags, words):
    usual = SMALL if command == "synthetic" else ()
    outcome = run_main("prepare", command, "--output", tmp_path / "out", *usual, *flags)
    assert outcome.status == 2 and words in outcome.err, outcome.err
    assert outcome.err.startswith("prepare.py: ") and len(outcome.err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_command_or_flag_that_does_not_exist_is_status_2(run_main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in ([], ["unheard-of"], ["synthetic", "--unheard-of"], ["contact-sheet", "stray"]):
        outcome = run_main("prepare", *words)
        assert outcome.status == 2 and (words[-1] if words else "subcommand") in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_check_says_ok_with_status_0_and_names_a_fault_with_status_1(run_main, tiny_faces, tmp_path, monkeypatch):
    root = shutil.copytree(tiny_faces, tmp_path / "face_dataset")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "check.json"
    outcome = run_main("prepare", "check", "fgnet", "calfw", "--face-dataset", root, "--workers", 0, "--json", report)
    assert (outcome.status, json.loads(report.read_text())["wrong"]) == (0, False), outcome.out
    next((root / "CALFW" / "processed_CALFW_2").iterdir()).write_bytes(b"no picture")
    outcome = run_main("prepare", "check", "calfw", "--face-dataset", root, "--workers", 0)
    assert outcome.status == 1 and "1 of 40 pictures can't be decoded" in outcome.out
    outcome = run_main("prepare", "check", "calfw", "--face-dataset", root, "--workers", 0, "--json", report)
    assert outcome.status == 2 and "--force" in outcome.err  # the report that is there is kept
    for names, status in (((), 0), (("fgnet",), 1), (("unheard-of",), 2)):  # what is not there
        assert run_main("prepare", "check", *names, "--face-dataset", tmp_path / "empty").status == status


def test_bin_writes_a_set_that_check_and_test_py_take(run_main, tiny_faces, tmp_path):
    calfw = tiny_faces / "CALFW"
    flags = ("--pairs", calfw / "txts" / "CALFW_img_pairs_labels.txt", "--images", calfw / "processed_CALFW_2",
             "--output", tmp_path / "mine.bin")  # fmt: skip
    outcome = run_main("prepare", "bin", *flags)
    assert outcome.status == 0 and "20 pairs of 40 pictures, 0 encoded again" in outcome.out
    assert run_main("prepare", "check", "mine.bin", "--face-dataset", tmp_path).status == 0
    assert run_main("prepare", "bin", *flags).status == 2  # it is there


def test_a_folder_packed_and_unpacked_has_its_pictures_and_ages_again(run_main, tiny_faces, tmp_path):
    folder = tiny_faces / TRAINING_SETS["ms1mv3"].folder
    records, back = tmp_path / "records" / "train.rec", tmp_path / "back"
    flags = ("--data", folder, "--from-names", "ms1mv3", "--output", records)
    assert run_main("prepare", "pack", *flags, "--dry-run").status == 0 and not records.exists()
    assert run_main("prepare", "pack", *flags).status == 0
    assert run_main("prepare", "pack", *flags).status == 2  # nothing is replaced
    assert run_main("prepare", "unpack", "--records", records, "--output", back).status == 0
    before, after = (index_identity_folders(each, FILENAME_PATTERNS["ms1mv3"]) for each in (folder, back))
    assert [before.read(i) for i in range(len(before))] == [after.read(i) for i in range(len(after))]
    assert before.ages.tolist() == after.ages.tolist() and before.identities.tolist() == after.identities.tolist()


@pytest.mark.parametrize("years", [False, True], ids=["groups", "years"])
def test_ages_estimated_by_an_age_branch_are_those_of_a_plain_loop(run_main, tiny_faces, tmp_path, years):
    folder, weights = tiny_faces / "ID_processed_FGNET", tmp_path / "age.pth"
    torch.manual_seed(2)
    model = IEFP(TINY, 1, None, year_head=years).eval()
    torch.nn.init.normal_(model.age_estimator.weight, 0, 0.5)
    torch.save(age_file_tensors(model), weights)
    flags = ("--data", folder, "--weights", weights, "--device", "cpu", "--workers", 0, "--batch-size", 5)
    outcome = run_main("prepare", "ages", *flags, "--output", tmp_path / "ages.csv", "--histogram", tmp_path / "h.png")
    assert outcome.status == 0, outcome.err
    index = index_identity_folders(folder, None)
    rows = [line.split(",") for line in (tmp_path / "ages.csv").read_text().splitlines()[1:]]
    assert [key for key, _ in rows] == [index.key(i) for i in range(len(index))]
    for i, (_, age) in enumerate(rows):
        expected = 0.0
        for picture in (index.decode(i), index.decode(i).flip(-1)):
            with torch.no_grad():
                features = model.age_features(to_network_input(picture[None]))
                if years:
                    expected += sum(p * year for year, p in enumerate(model.year_head(features)[0].softmax(0).tolist()))
                else:
                    expected += AGE_GROUP_MIDDLES[int(model.age_logits(features).argmax())]
        assert float(age) == pytest.approx(expected / 2, abs=1e-3)
    assert Image.open(tmp_path / "h.png").size[0] > 300


def test_published_names_are_given_and_taken_back(run_main, tiny_faces, tmp_path):
    folder = tmp_path / "people"
    shutil.copytree(tiny_faces / "ID_processed_FGNET", folder)
    before = sorted(path.relative_to(folder) for path in folder.rglob("*.JPG"))
    rename = ("--data", folder, "--from-names", "fgnet", "--rename")
    assert run_main("prepare", "ages", *rename).status == 0
    renamed = index_identity_folders(folder, FILENAME_PATTERNS["ms1mv3"])
    assert len(renamed) == len(before)
    assert run_main("prepare", "ages", "--undo", tmp_path / "people.undo.jsonl").status == 0
    assert sorted(path.relative_to(folder) for path in folder.rglob("*.JPG")) == before
