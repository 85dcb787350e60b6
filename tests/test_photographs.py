"""prepare.py align: photographs in folders -> aligned faces under the same names -> ages -> a trained model."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from photographs import YUNET, KnownFaces, astronaut, drawn, empty_scene, names_below, place
from PIL import Image
from scripts import TINY

from data.ages.tables import read_ages
from data.alignment.detectors import open_detector
from data.alignment.template import TEMPLATE
from data.faces import index_flat_folder
from data.releases import aligned_folders
from meta import AGE_GROUP_MIDDLES
from models.iefp import IEFP
from models.weights import age_file_tensors

PEOPLE = 3
# Of each scene its own size, by which KnownFaces finds the faces in it, and how its face is turned.
SCENES = [("20", (520, 400), 0), ("31_age_31", (530, 410), 25), ("47", (540, 420), -70)]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """(folder, what KnownFaces knows, points by path): people in scenes, two of them in one, and what can't be used."""
    folder, known, points = tmp_path_factory.mktemp("photographs") / "raw", {}, {}
    for person in range(PEOPLE):
        (folder / f"p{person}").mkdir(parents=True)
        for number, (name, size, angle) in enumerate(SCENES):
            scene = empty_scene((size[0] + person, size[1]), seed=10 * person + number)
            path = f"p{person}/{name}{('.jpg', '.png', '.tif')[number]}"
            points[path] = place(scene, drawn(person, int(name[:2])), (200, 200), angle)
            known[scene.size] = [(points[path], 0.9)]
            if person == 0 and number == 0:
                other = place(scene, drawn(9, 40).resize((100, 100)), (430, 120))
                known[scene.size].append((other, 0.9))
            scene.save(folder / path, **({"quality": 95} if number == 0 else {}))
    empty_scene((300, 200)).save(folder / "p1" / "nobody.jpg")
    (folder / "p1" / "half.jpg").write_bytes((folder / "p1" / "20.jpg").read_bytes()[:5000])
    (folder / "p2" / "notes.txt").write_text("no picture")
    return folder, known, points


@pytest.fixture
def align(run_main, tmp_path, photographs, monkeypatch):
    """Runs prepare.py align with a detector that knows the photographs; gives what it printed."""
    folder, known, _ = photographs
    detector = KnownFaces(known)
    (tmp_path / "yunet.onnx").write_bytes(b"a model")
    monkeypatch.setattr("data.alignment.detectors.open_detector", lambda path: detector)

    def run(*flags, of=folder):
        return run_main("prepare", "align", of, "--detector", tmp_path / "yunet.onnx", "--workers", 1, *flags)

    run.detector = detector
    return run


RESULT = sorted(f"p{person}/{name}" for person in range(PEOPLE) for name in ("20.jpg", "31_age_31.png", "47.jpg"))


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_photographs_become_aligned_faces_under_the_same_names(align, tmp_path):
    """5: names and ages in them stay, what can't be used is listed with its reason, what is doubtful noted."""
    reply = align("-o", tmp_path / "aligned")
    assert reply.status == 0, reply.err
    assert names_below(tmp_path / "aligned") == RESULT
    for name in RESULT:
        person, age = int(name[1]), int(name[3:5])
        with Image.open(tmp_path / "aligned" / name) as picture:
            assert picture.size == (112, 112)
            expected = np.asarray(drawn(person, age).resize((112, 112), Image.Resampling.BICUBIC), np.float64)
            # Corners of a turned face are those of the scene.
            inside = (slice(20, 92), slice(20, 92))
            assert np.abs(np.asarray(picture, np.float64)[inside] - expected[inside]).mean() < 6, name
    assert f"{tmp_path / 'aligned'}: 9 pictures of 3 people, of which 0 were there" in reply.out
    assert "1 files are no pictures by their names and are left out (such as 'p2/notes.txt')" in reply.out
    header, *left_out = rows_of(tmp_path / "aligned_left_out.csv")
    assert header == ["picture", "reason"] and [name for name, _ in left_out] == ["p1/half.jpg", "p1/nobody.jpg"]
    assert "truncated" in left_out[0][1] and "no face was found" in left_out[1][1]
    assert f"left out: 2 pictures, named in {tmp_path / 'aligned_left_out.csv'}" in reply.out
    notes = rows_of(tmp_path / "aligned_notes.csv")[1:]
    assert [(name, kind) for name, kind, _ in notes] == [
        ("p0/20.jpg", "several"), *((f"p{person}/47.tif", "turned") for person in range(PEOPLE))
    ]  # fmt: skip
    assert "turned by more than 60 degrees: 3 (such as 'p0/47.tif')" in reply.out
    with Image.open(tmp_path / "aligned_alignment.png") as sheet:
        assert sheet.size == (8 * 168, 2 * 182)


def test_it_goes_on_where_it_was_and_does_nothing_twice(align, tmp_path, monkeypatch):
    """5: stopped after four pictures it goes on with the others, notes included; finished it does nothing."""
    write_face, written = aligned_folders.write_face, []

    def stopping(face, **how):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(face.name)
        return write_face(face, **how)

    monkeypatch.setattr(aligned_folders, "write_face", stopping)
    assert align("-o", tmp_path / "aligned").status == 130
    assert not (tmp_path / "aligned").exists()
    monkeypatch.setattr(aligned_folders, "write_face", write_face)
    align.detector.num_searched = 0
    reply = align("-o", tmp_path / "aligned")
    assert reply.status == 0 and "of which 4 were there" in reply.out
    assert align.detector.num_searched == 6  # of 10 that can be decoded
    assert names_below(tmp_path / "aligned") == RESULT
    assert len(rows_of(tmp_path / "aligned_notes.csv")) == 1 + 1 + PEOPLE
    again = align("-o", tmp_path / "aligned")
    assert again.status == 0 and "of which 9 were there" in again.out and "left out: 2 pictures" in again.out
    assert "turned by more than 60 degrees: 3" in again.out and align.detector.num_searched == 6
    other = align("-o", tmp_path / "aligned", "--face", "centre")
    assert other.status == 2 and "exists: give another --output, or --force" in other.err


def test_one_face_alone_can_be_asked_for_and_margins_only_counted(align, tmp_path):
    """4, 5: --face only leaves out pictures of several; --margin-check writes nothing."""
    reply = align("--margin-check", "--face", "only")
    assert reply.status == 0, reply.err
    assert "11 photographs, of which 8 can be aligned" in reply.out
    assert "can't be aligned: 3 (such as 'p0/20.jpg': 2 faces were found in 'p0/20.jpg': crop it to one" in reply.out
    assert "turned by more than 60 degrees: 3" in reply.out
    assert names_below(tmp_path) == ["yunet.onnx"]


def test_points_from_a_table_need_no_detector(run_main, photographs, tmp_path):
    """5: --landmarks, at another size; a picture without points is left out."""
    folder, _, points = photographs
    del (points := dict(points))["p0/20.jpg"]
    (tmp_path / "points.json").write_text(json.dumps({name: of.tolist() for name, of in points.items()}))
    reply = run_main("prepare", "align", folder, "--landmarks", tmp_path / "points.json", "--size", 64,
                     "-o", tmp_path / "aligned", "--workers", 1)  # fmt: skip
    assert reply.status == 0, reply.err
    assert names_below(tmp_path / "aligned") == RESULT[1:]
    assert ["p0/20.jpg", "no landmarks"] in rows_of(tmp_path / "aligned_left_out.csv")
    with Image.open(tmp_path / "aligned" / RESULT[1]) as picture:
        assert picture.size == (64, 64)


def test_two_photographs_of_one_name_and_aligned_pictures_among_them(align, tmp_path):
    """5: what would get one name is refused; a picture of 112x112 is copied as it is, byte for byte."""
    folder = tmp_path / "flat"
    folder.mkdir()
    drawn(1, 30).resize((112, 112)).save(folder / "face.jpg", quality=80)
    align.detector.known[(112, 112)] = [(TEMPLATE, 0.9)]
    assert align("-o", tmp_path / "aligned", of=folder).status == 0
    assert (tmp_path / "aligned" / "face.jpg").read_bytes() == (folder / "face.jpg").read_bytes()
    assert not (tmp_path / "aligned_notes.csv").exists()
    Image.new("RGB", (90, 80)).save(folder / "face.gif")
    reply = align("-o", tmp_path / "again", of=folder)
    assert reply.status == 2 and "would both become 'face.jpg'" in reply.err
    (folder / "face.jpg").unlink()
    reply = align("-o", tmp_path / "again", of=folder)
    assert reply.status == 2 and "No picture of photographs can be used: " in reply.err


@pytest.mark.parametrize(("line", "words"), [
    ("RAW -o OUT/a", "give --detector (an ONNX file) or --landmarks"),
    ("RAW --detector OUT/none.onnx", "--output is missing: give a new folder, or --margin-check"),
    ("RAW --detector OUT/none.onnx -o OUT/a", "none.onnx does not exist: give YuNet's"),
    ("RAW --landmarks OUT/points.csv -o RAW/aligned", "lies in the folder of the pictures"),
    ("OUT --landmarks OUT/points.csv -o OUT/../a", "holds no photographs: give one with files that end in .jpg"),
    ("OUT/none --landmarks OUT/points.csv -o OUT/a", "cannot be read, No such file"),
    ("RAW --landmarks OUT/points.csv -o OUT/a --face only", "--face does nothing without --detector"),
    ("RAW --landmarks OUT/points.csv --margin-check --size 90", "--size does nothing with --margin-check"),
])  # fmt: skip
def test_a_mistake_is_one_sentence_and_nothing_is_written(run_main, photographs, tmp_path, line, words):
    (tmp_path / "points.csv").write_text("path,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\nx.jpg,1,1,9,1,5,5,2,9,8,9\n")
    words_of = [word.replace("RAW", str(photographs[0])).replace("OUT", str(tmp_path)) for word in line.split()]
    reply = run_main("prepare", "align", *words_of)
    assert reply.status == 2 and words in reply.err and reply.err.count("\n") == 1, reply.err
    assert names_below(tmp_path) == ["points.csv"]


@pytest.fixture
def years(tmp_path) -> Path:
    """An age branch that takes everybody for 26 to 35, which suits the name 31_age_31.png."""
    torch.manual_seed(4)
    path, model = tmp_path / "years.pth", IEFP(TINY, 1, None)
    model.age_estimator.bias.data[AGE_GROUP_MIDDLES.index(31)] = 100
    torch.save(age_file_tensors(model), path)
    return path


def trained(run_main, aligned: Path, years: Path, tmp_path) -> None:
    """Ages for all pictures, and an epoch of training with them."""
    labels = run_main("prepare", "ages", "--data", aligned, "--weights", years, "--output", tmp_path / "ages.csv",
                      "--device", "cpu", "--workers", 0)  # fmt: skip
    assert labels.status == 0, labels.err
    reply = run_main("train", "--train-data", aligned, "--ages", tmp_path / "ages.csv", "--age-weights", years, *SMALL,
                     "--run-folder", tmp_path / "run", "--epochs", 1, "--cache-folder", tmp_path / "cache")  # fmt: skip
    assert reply.status == 0, reply.err
    assert (tmp_path / "run" / "iefp.pth").is_file()


def test_from_photographs_to_a_trained_model(align, run_main, years, tmp_path):
    """5: align, label with ages, train; and a flat folder gets its ages too, in a table or in names."""
    assert align("-o", tmp_path / "aligned").status == 0
    trained(run_main, tmp_path / "aligned", years, tmp_path)
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in RESULT:
        (tmp_path / "aligned" / name).rename(flat / name.replace("/", "-"))
    reply = run_main("prepare", "ages", "--data", flat, "--weights", years, "--output", tmp_path / "flat.csv",
                     "--device", "cpu", "--workers", 0)  # fmt: skip
    assert reply.status == 0, reply.err
    for _ in range(2):  # the second time all are there
        reply = run_main("prepare", "ages", "--data", flat, "--from-table", tmp_path / "flat.csv",
                         "--link", tmp_path / "named")  # fmt: skip
        assert reply.status == 0, reply.err
    index = index_flat_folder(flat, None)
    ages = read_ages(tmp_path / "flat.csv", index)
    assert index.num_identities == 0 and len(index) == 9 and (ages == 31).all()
    named = names_below(tmp_path / "named")
    assert len(named) == 9 and all("_age_31" in name and "/" not in name for name in named)
    reply = run_main("prepare", "ages", "--data", flat, "--from-table", tmp_path / "flat.csv", "--rename")
    assert reply.status == 0 and names_below(flat) == named, reply.err


@pytest.mark.skipif(not YUNET.is_file(), reason="YuNet's file is not beside the project")
def test_yunet_itself_from_photographs_to_a_trained_model(run_main, photographs, years, tmp_path):
    """5: the whole way with the real detector, and with a real face where scikit-image has one."""
    pytest.importorskip("cv2")
    open_detector.cache_clear()
    raw, _, points = photographs
    folder = tmp_path / "raw"
    for path in raw.rglob("*"):
        if path.is_file():
            (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
            (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    if (picture := astronaut()) is not None:
        (folder / "p3").mkdir()
        for name, angle in (("a.jpg", 0), ("b.jpg", 40)):
            picture.rotate(angle).save(folder / "p3" / name)
    reply = run_main("prepare", "align", folder, "--detector", YUNET, "--workers", 1, "-o", tmp_path / "aligned")
    assert reply.status == 0, reply.err
    names = names_below(tmp_path / "aligned")
    assert set(names) == set(RESULT) | ({"p3/a.jpg", "p3/b.jpg"} if picture is not None else set())
    for name in RESULT:
        person, age = int(name[1]), int(name[3:5])
        expected = np.asarray(drawn(person, age).resize((112, 112)).convert("L"), np.float64)[16:96, 16:96]
        with Image.open(tmp_path / "aligned" / name) as aligned:
            found = np.asarray(aligned.convert("L"), np.float64)[16:96, 16:96]
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.5, name
    trained(run_main, tmp_path / "aligned", years, tmp_path)
