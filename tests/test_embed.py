"""embed.py: the same embedding as test.py's, answers about two pictures, galleries, alignment, and what is refused."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from photographs import FakeDetector, KnownFaces
from PIL import Image
from scripts import load_script
from torch.nn import functional as F

from data.alignment.detectors import YuNet
from data.alignment.photos import Aligner
from data.alignment.template import TEMPLATE
from data.index_cache import CACHE_FOLDER
from evaluation.calibration import FILE_NAME, Calibration, read_calibration
from evaluation.comparison import Face, compare_faces, cosines, nearest
from evaluation.embeddings.feature_files import read_features
from evaluation.protocols import join_views
from meta import AGE_GROUP_NAMES
from models.weights import load_for_embedding
from utils.cli import parse_config

embed_script = load_script("embed")


@pytest.fixture
def folder(tiny_faces, tmp_path):
    """FG-NET's made-up pictures, to be damaged: 4 people, 4 pictures each."""
    return shutil.copytree(tiny_faces / "ID_processed_FGNET", tmp_path / "photos")


@pytest.fixture
def run_embed(run_main, weights):
    def run(*flags, of=weights):
        return run_main("embed", "--weights", of, "--device", "cpu", "--workers", 0, *flags)

    return run


@pytest.fixture(scope="module")
def model(weights):
    return embed_script.load(weights, "cpu")


@pytest.fixture(scope="module")
def tested(weights, tiny_faces, tmp_path_factory):
    """The folder of what test.py writes of these weights."""
    script, output = load_script("test"), tmp_path_factory.mktemp("results")
    flags = ["--weights", weights, "--face-dataset", tiny_faces, "--benchmarks", "fgnet", "--workers", 0,
             "--output", output, "--device", "cpu", "--cache-folder", output / CACHE_FOLDER]  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("evaluation.report.page.svg_of", lambda plot: b"")
        assert script.test(parse_config(script.TestConfig, list(map(str, flags)))) == 0
    return output


@pytest.fixture
def calibration(tested):
    return tested / FILE_NAME


def all_pictures(folder):
    return sorted(path for path in folder.rglob("*.JPG"))


@pytest.fixture
def photo(folder, tmp_path):
    """photo.png, 600 x 500, with the first face turned and enlarged, and its five points, which points.json has too."""
    face = Image.open(all_pictures(folder)[0]).convert("RGB")
    radians = np.deg2rad(20.0)
    turn = 2.5 * np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    shift = np.array([310.0, 240.0]) - turn @ TEMPLATE.mean(axis=0)
    back = np.linalg.inv(turn)
    numbers = np.column_stack([back, 0.5 - back @ (shift + 0.5)]).ravel()
    how = Image.Transform.AFFINE, tuple(numbers), Image.Resampling.BICUBIC
    face.transform((600, 500), *how, fillcolor=(90, 90, 90)).save(tmp_path / "photo.png")
    points = TEMPLATE @ turn.T + shift
    (tmp_path / "points.json").write_text(json.dumps({"photo.png": points.tolist()}))
    return tmp_path / "photo.png", points


def test_embeddings_are_those_of_test_py_and_of_one_picture_at_a_time(
    run_main, run_embed, tested, folder, weights, tmp_path
):
    """And test.py gives the figures of the weights for what embed.py wrote."""
    assert run_embed(folder, "-o", tmp_path / "faces.npz").status == 0
    faces = read_features(tmp_path / "faces.npz")
    (kept,) = (tested / CACHE_FOLDER).glob("embeddings_*.npz")
    with np.load(kept) as of_test:
        joined = join_views(of_test["original"], of_test["mirror"], "concatenate")
        ages = (of_test["age_probabilities_original"] + of_test["age_probabilities_mirror"]) / 2
    assert faces.names.tolist() == [path.relative_to(folder).as_posix() for path in all_pictures(folder)]
    np.testing.assert_allclose(faces.embeddings, joined, atol=1e-6)
    np.testing.assert_allclose(faces.age_probabilities, ages, atol=1e-6)
    by_hand, _ = load_for_embedding(weights)
    for name, row in zip(faces.names, faces.embeddings, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(folder / name).convert("RGB"))).permute(2, 0, 1)[None]
        image = (pixels.float() - 127.5) / 127.5
        with torch.inference_mode():
            views = [F.normalize(by_hand.identity_features(view), dim=1) for view in (image, image.flip(-1))]
        expected = F.normalize(torch.cat(views, dim=1), dim=1)[0].numpy()
        np.testing.assert_allclose(row, expected, atol=1e-5)

    folder.rename(tmp_path / "ID_processed_FGNET")
    outcome = run_main("test", "--embeddings", tmp_path / "faces.npz", "--face-dataset", tmp_path, "--device", "cpu",
                       "--benchmarks", "fgnet", "--output", tmp_path / "again", "--no-analysis")  # fmt: skip
    assert outcome.status == 0, outcome.err
    of = [json.loads((place / "results.json").read_text())["models"][0]["results"]["fgnet"]
          for place in (tested, tmp_path / "again")]  # fmt: skip
    for protocol in ("leave_one_out", "mates_against_rest"):
        assert of[0][protocol]["concatenate"] == of[1][protocol]["concatenate"]
    assert of[0]["age"] == of[1]["age"]


def test_two_pictures_get_the_answer_of_the_calibrated_threshold(run_embed, calibration, folder, model, other_weights):
    a, b, *_ = pictures = all_pictures(folder)
    outcome = run_embed(a, b, "--calibration", calibration, "--far", 0.1, "--json")
    assert outcome.status == 0, outcome.err
    answer = json.loads(outcome.out)
    entry = json.loads(calibration.read_text())["models"][0]["benchmarks"]["fgnet"]
    row = entry["at_far"]["1e-1"]
    faces = embed_script.embed(model, pictures)
    assert answer["cosine"] == pytest.approx(float(faces.embeddings[0].astype(float) @ faces.embeddings[1]), abs=1e-6)
    assert answer["same_person"] is (answer["cosine"] >= row["threshold"])
    assert (answer["threshold"], answer["tar_percent"]) == (row["threshold"], row["tar_percent"])
    assert (answer["num_impostor"], answer["impostors_allowed"]) == (entry["num_impostor"], entry["num_impostor"] // 10)
    for i, group in enumerate(answer["age_groups"]):
        assert group["group"] == AGE_GROUP_NAMES[faces.age_probabilities[i].argmax()]
        assert group["probability"] == pytest.approx(faces.age_probabilities[i].max(), abs=1e-6)
    lines = run_embed(a, b, "--calibration", calibration, "--far", 0.1, "--ages", 3, 40).out.splitlines()
    assert lines[0].startswith(f"{a.name} and {b.name}: cosine 0.") and "impostor pairs of FG-NET reach" in lines[1]
    assert f"{a.name} looks " in lines[3] and lines[4].startswith("The faces are 37 years apart: ")
    outcome = run_embed(a, b, "--calibration", calibration, of=other_weights)
    assert outcome.status == 2 and "is about other weights" in outcome.err and outcome.err.count("\n") == 1


def calibration_with(tar_by_gap, threshold=0.5, impostors_allowed=50):
    return {"schema": 1, "models": [{"weights_sha256": "", "model_fingerprint": "a", "join": "concatenate",
                                      "benchmarks": {"fgnet": {
        "title": "FG-NET", "num_genuine": 1000, "num_impostor": 50_000,
        "num_genuine_by_age_gap": {gap: count for gap, (count, _) in tar_by_gap.items()},
        "at_far": {"1e-3": {"threshold": threshold, "impostors_allowed": impostors_allowed, "tar_percent": 80.0,
                            "tar_by_age_gap_percent": {gap: tar for gap, (_, tar) in tar_by_gap.items()}}},
        "left_out": {}}}}]}  # fmt: skip


@pytest.fixture
def made_up(tmp_path):
    def make(*args, **kwargs) -> Calibration:
        path = tmp_path / "calibration.json"
        path.write_text(json.dumps(calibration_with(*args, **kwargs)))
        return read_calibration(path, "a", "concatenate")

    return make


def face_at(angle, name, group=None):
    probabilities = None if group is None else np.eye(8, dtype=np.float32)[group] * 0.9 + 0.0125
    return Face(name, np.array([np.cos(angle), np.sin(angle)], np.float32), probabilities)


def test_an_answer_says_what_the_gap_means(made_up):
    calibration = made_up({"21-30": (312, 38.0), "31+": (4, None)})
    answer = compare_faces(face_at(0, "x/a.jpg", 0), face_at(1.2, "x/b.jpg", 3), calibration)  # middles 6 and 31
    assert answer.passes is False and answer.cosine == pytest.approx(np.cos(1.2), abs=1e-6)
    assert answer.sentences() == [
        "a.jpg and b.jpg: cosine 0.362.",
        "Not taken for the same person at FAR 1e-3: the cosine is below 0.500, which at most 50 of 50,000 impostor "
        "pairs of FG-NET reach.",
        "a.jpg looks 0-12 years old (probability 0.91), b.jpg looks 26-35 years old (probability 0.91).",
        "The faces are about 25 years apart, which is guessed from the age groups 0-12 (probability 0.91) and 26-35 "
        "(probability 0.91): of 312 genuine pairs 21-30 years apart 38.0 % pass this threshold on "
        "FG-NET, of all its pairs 80.0 %, so 62.0 % of such pairs of one person fail like this one.",
    ]
    far_apart = compare_faces(face_at(0, "a"), face_at(0.3, "b"), calibration, ages=(2, 60))
    assert far_apart.passes and far_apart.ages is None
    assert far_apart.sentences()[-1] == (
        "The faces are 58 years apart: FG-NET has too few genuine pairs 31+ years apart (4) to say how many of such "
        "pass."
    )
    assert json.loads(json.dumps(far_apart.as_plain()))["same_person"] is True


def test_a_score_at_the_threshold_passes_and_a_weak_threshold_comes_with_a_warning(made_up):
    calibration = made_up({}, threshold=1.0, impostors_allowed=3)
    answer = compare_faces(face_at(0, "a"), face_at(0, "b"), calibration)
    assert answer.passes
    assert any("hangs on the 3 impostor pairs" in sentence for sentence in answer.sentences())
    assert any("the same picture" in sentence for sentence in answer.sentences())


def test_without_a_calibration_there_is_a_cosine_and_no_decision(run_embed, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_embed(*all_pictures(folder)[:2])
    assert outcome.status == 0 and "cosine" in outcome.out and "person" not in outcome.out
    assert "Which cosine is enough is not known" in outcome.out and "test.py writes one" in outcome.out


def test_the_three_functions_take_paths_and_pictures(model, folder, calibration):
    paths = all_pictures(folder)[:2]
    faces = embed_script.embed(model, [str(paths[0]), Image.open(paths[1])])
    assert len(faces) == 2 and faces.names == (str(paths[0]), "picture 1") and faces.embeddings.shape == (2, 1024)
    np.testing.assert_allclose(np.linalg.norm(faces.embeddings, axis=1), 1, atol=1e-6)
    known = embed_script.calibration_of(model, calibration)
    answer = embed_script.compare(faces[0], faces[1], known, far=0.1)
    assert answer.cosine == cosines(faces.embeddings[:1], faces.embeddings[1:])[0, 0]
    assert answer.passes in (True, False)


def test_a_gallery_gives_the_nearest_pictures_first(run_embed, calibration, folder, tmp_path, model):
    run_embed(folder, "-o", tmp_path / "faces.npz")
    photo = all_pictures(folder)[5]
    outcome = run_embed("--gallery", tmp_path / "faces.npz", photo, "--top", 3, "--calibration", calibration,
                        "--far", 0.1, "--json")  # fmt: skip
    assert outcome.status == 0, outcome.err
    found = json.loads(outcome.out)
    faces = read_features(tmp_path / "faces.npz")
    scores = faces.embeddings.astype(float) @ faces.embeddings[5].astype(float)
    best = np.argsort(-scores, kind="stable")[:3]
    (search,) = found["searches"]
    assert [match["name"] for match in search["matches"]] == faces.names[best].tolist()
    assert search["matches"][0]["name"] == photo.relative_to(folder).as_posix()
    for match, score in zip(search["matches"], scores[best], strict=True):
        assert match["cosine"] == pytest.approx(score, abs=1e-6)
        assert match["passes"] is (match["cosine"] >= found["threshold"])
    outcome = run_embed("--gallery", tmp_path / "faces.npz", photo, "--calibration", calibration, "--far", 0.1)
    assert "1.000" in outcome.out and "the same picture, or a copy" in outcome.out
    assert "pictures of other people in a gallery about" in outcome.out


def test_the_nearest_are_those_of_a_plain_sort_in_blocks_too(monkeypatch):
    draw = np.random.default_rng(0)
    probe, gallery = draw.normal(size=(3, 4)), np.round(draw.normal(size=(50, 4)), 1)
    gallery[7] = gallery[31]  # a tie: the first in order
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (probe, gallery)]
    expected = [
        sorted(range(50), key=lambda i, row=row: (-round(float(row @ unit[1][i]), 12), i))[:9] for row in unit[0]
    ]
    for scores_a_block in (2**22, 12):
        monkeypatch.setattr("evaluation.arrays.SCORES_PER_BLOCK", scores_a_block)
        assert [[match.position for match in row] for row in nearest(probe, gallery, 9)] == expected
    assert len(nearest(probe, gallery, 99)[0]) == 50


def test_a_gallery_of_other_weights_or_of_nobody_known_is_refused(run_embed, folder, tmp_path, other_weights):
    photo, path = all_pictures(folder)[0], tmp_path / "faces.npz"
    run_embed(folder, "-o", path)
    outcome = run_embed("--gallery", path, photo, of=other_weights)
    assert outcome.status == 2 and "was made by other weights" in outcome.err and outcome.err.count("\n") == 1
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) == {"names", "embeddings", "age_probabilities", "made_by"}
        content = {name: arrays[name] for name in arrays}
    made_by = json.loads(str(content["made_by"][0]))
    assert made_by["join"] == "concatenate" and made_by["aligned_by"] == {"as given": len(all_pictures(folder))}
    np.savez(path, **content | {"made_by": np.array([json.dumps(made_by | {"join": "add"})])})
    assert "another join" in run_embed("--gallery", path, photo).err
    np.savez(path, **content | {"made_by": np.array(["[1"])})
    assert "its 'made_by' is no JSON object" in run_embed("--gallery", path, photo).err
    del content["made_by"]
    np.savez(path, **content)
    assert "does not say which model made it" in run_embed("--gallery", path, photo).err


def test_a_parquet_gallery_is_the_npz_one(run_embed, folder, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    photo = all_pictures(folder)[3]
    for name in ("faces.npz", "faces.parquet"):
        assert run_embed(folder, "-o", tmp_path / name).status == 0
    found = [json.loads(run_embed("--gallery", tmp_path / name, photo, "--json").out)["searches"]
             for name in ("faces.npz", "faces.parquet")]  # fmt: skip
    assert found[0] == found[1]
    table = parquet.read_table(tmp_path / "faces.parquet")
    assert table.column_names == ["name", "embedding", "age_probabilities"]
    assert table.num_rows == len(all_pictures(folder))
    (tmp_path / "faces.parquet").write_bytes((tmp_path / "faces.parquet").read_bytes()[:500])
    outcome = run_embed("--gallery", tmp_path / "faces.parquet", photo)
    assert outcome.status == 2 and "cannot be read" in outcome.err and outcome.err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    outcome = run_embed(folder, "-o", tmp_path / "new.parquet")  # refused before the work
    assert outcome.status == 2 and "pip install pyarrow" in outcome.err


def test_landmarks_or_a_detector_bring_a_photograph_to_the_embedding_of_its_aligned_face(
    run_embed, folder, photo, tmp_path, model, monkeypatch
):
    (picture, points), path = photo, all_pictures(folder)[0]
    (tmp_path / "yunet.onnx").touch()
    detector = KnownFaces({(600, 500): [(points, 0.9), (points + 40, 0.9)], (112, 112): [(TEMPLATE, 0.9)]})
    monkeypatch.setattr("data.alignment.detectors.open_detector", lambda path: detector)
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    cosines = []
    for how in (("--landmarks", tmp_path / "points.json"), ("--detector", tmp_path / "yunet.onnx")):
        outcome = run_embed(picture, path, *how, "--json")
        assert outcome.status == 0, outcome.err
        cosines.append(json.loads(outcome.out)["cosine"])
    assert cosines[1] == pytest.approx(cosines[0], abs=1e-5)
    assert f"2 faces were found in '{picture}': the largest one is taken" in outcome.err
    as_it_is = embed_script.embed(model, [picture, path], Aligner(assume_aligned=True))
    assert cosines[0] > 0.98 > compare_faces(as_it_is[0], as_it_is[1]).cosine
    assert as_it_is.made_by["aligned_by"] == {"as given": 1, "assumed": 1}
    detector.known.clear()
    outcome = run_embed(picture, path, "--detector", tmp_path / "yunet.onnx")
    assert outcome.status == 2 and "no face was found in" in outcome.err and outcome.err.count("\n") == 1


def test_faces_are_found_in_shrunk_pictures_blue_first_the_largest_first():
    points = TEMPLATE * 8 + 100
    detector = FakeDetector((points / 2, 10.0), (points, 20.0), picture_size=(1600, 1200))
    picture = Image.new("RGB", (1600, 1200), (255, 0, 10))
    found = YuNet(detector).find_faces(picture)
    assert detector.sizes == [(640, 480)] and detector.seen[0, 0].tolist() == [10, 0, 255]
    np.testing.assert_allclose(found.points, [points, points / 2], atol=1e-3)
    detector.faces = ()
    assert YuNet(detector).find_faces(picture).points.shape == (0, 5, 2)


def test_a_photograph_that_its_camera_turned_is_shown_upright_to_the_detector(tmp_path, monkeypatch):
    picture = Image.new("RGB", (300, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif)
    points = TEMPLATE + 40
    detector = FakeDetector((points, 50.0), picture_size=(200, 300))
    monkeypatch.setattr("data.alignment.detectors.open_detector", lambda path: YuNet(detector))
    Aligner(detector_path="yunet.onnx").face(tmp_path / "turned.jpg", "turned.jpg")
    assert detector.sizes[0] == (200, 300)


def test_a_detector_that_is_missing_is_a_sentence(run_embed, folder, tmp_path, monkeypatch):
    path = tmp_path / "yunet.onnx"
    outcome = run_embed(*all_pictures(folder)[:2], "--detector", path)
    assert outcome.status == 2 and "yunet.onnx does not exist" in outcome.err and "opencv_zoo" in outcome.err
    path.write_bytes(b"\x08\x00a model")
    monkeypatch.setitem(sys.modules, "cv2", None)
    outcome = run_embed(*all_pictures(folder)[:2], "--detector", path)
    assert outcome.status == 2 and "pip install opencv-python-headless" in outcome.err


@pytest.mark.parametrize("shift", [0, 11, 13, None])
def test_a_picture_of_112x112_is_checked_by_a_detector_where_one_is_given(run_embed, folder, monkeypatch, shift):
    points = [] if shift is None else [(TEMPLATE + 40, 0.9), (TEMPLATE + (shift, 0), 0.9)]
    detector = KnownFaces({(112, 112): points})
    monkeypatch.setattr("data.alignment.detectors.open_detector", lambda path: detector)
    result = run_embed(*all_pictures(folder)[:2], "--detector", "yunet.onnx")
    assert result.status == 0 and result.out
    notes = [line for line in result.err.splitlines() if "taken as it is" in line]
    assert len(notes) == (0 if shift in (0, 11) else 2)
    found = "no face at all" if shift is None else f"{shift} pixels beside the places of an aligned face"
    assert all(f"the detector finds {found}" in note for note in notes)


def test_the_face_that_is_meant_is_chosen_by_a_flag(run_embed, folder, photo, monkeypatch):
    (picture, points), path = photo, all_pictures(folder)[0]
    faces = {(600, 500): [(points + 40, 0.9), (points, 0.9)], (112, 112): [(TEMPLATE, 0.9)]}
    monkeypatch.setattr("data.alignment.detectors.open_detector", lambda path: KnownFaces(faces))
    replies = {face: run_embed(picture, path, "--detector", "yunet.onnx", "--face", face, "--json")
               for face in ("largest", "centre", "only")}  # fmt: skip
    assert replies["only"].status == 2 and "2 faces were found in" in replies["only"].err
    cosines = {face: json.loads(replies[face].out)["cosine"] for face in ("largest", "centre")}
    assert cosines["centre"] > 0.98 > cosines["largest"]
    assert "the one nearest to the centre is taken" in replies["centre"].err
    alone = run_embed(picture, path, "--face", "only")
    assert alone.status == 2 and "--face does nothing without --detector" in alone.err


DAMAGES = {
    "300 x 200 pixels, and only those of 112 x 112 are taken": lambda path: Image.new("RGB", (300, 200)).save(path),
    "cannot be decoded": lambda path: path.write_bytes(path.read_bytes()[:900]),
    "is not an image": lambda path: path.write_text("hello"),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_a_bad_picture_is_one_sentence_or_is_left_out_and_listed(run_embed, folder, tmp_path, words):
    bad, good = all_pictures(folder)[:2]
    for path in set(all_pictures(folder)[4:]):
        path.unlink()
    DAMAGES[words](bad)
    outcome = run_embed(folder, "-o", tmp_path / "faces.npz")
    assert outcome.status == 2 and words in outcome.err and bad.name in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "faces.npz").exists()
    outcome = run_embed(folder, "-o", tmp_path / "faces.npz", "--on-bad-picture", "skip")
    assert outcome.status == 0 and "left out: " in outcome.err and words in outcome.err
    names = read_features(tmp_path / "faces.npz").names.tolist()
    assert names == [path.relative_to(folder).as_posix() for path in all_pictures(folder)[1:]]
    for pictures, words in (((bad, good), "one of the two pictures can't be compared"),
                            ((bad, "-o", tmp_path / "new.npz"), "none of the 1 pictures can be embedded")):  # fmt: skip
        outcome = run_embed(*pictures, "--on-bad-picture", "skip")
        assert outcome.status == 2 and words in outcome.err


@pytest.mark.parametrize(("line", "words"), [
    ("", "no pictures are given"), ("A", "1 pictures are given: give two"), ("A B C", "3 pictures are given: give two"),
    ("A A", "are the same file"), ("nowhere.jpg A", "does not exist"), ("EMPTY -o OUT/f.npz", "holds no picture"),
    ("A -o OUT/none/f.npz", "folder that does not exist"), ("A -o OUT/f.txt", "ends in none of .npz, .parquet, .csv"),
    ("A -o OUT/there.npz", "exists: give another name, or --force"),
    ("A -o OUT/f.npz --gallery OUT/there.npz", "give one of the two"),
    ("A -o OUT/f.npz --benchmark fgnet", "--benchmark does nothing without --group"),
    ("A B --assume-aligned --detector OUT/yunet.onnx", "give one of the two"),
    ("A --gallery OUT/there.npz", "has no end, the download stopped early"),
    ("A B --calibration OUT/none.json", "none.json is no file"),
])  # fmt: skip
def test_a_mistake_is_one_sentence(run_embed, folder, tmp_path, line, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.npz").write_bytes(b"PK\x03\x04 damaged")
    a, b, c, *_ = all_pictures(folder)
    places = {"A": a, "B": b, "C": c, "EMPTY": tmp_path / "empty"}
    outcome = run_embed(*(places.get(word, word.replace("OUT", str(tmp_path))) for word in line.split()))
    assert outcome.status == 2 and words in outcome.err, outcome.err
    assert outcome.err.startswith("embed.py: ") and outcome.err.count("\n") == 1


def test_weights_without_an_age_branch_leave_ages_out(run_embed, folder, weights, tmp_path):
    tensors = torch.load(weights, weights_only=True)
    torch.save({key: value for key, value in tensors.items() if key.startswith("backbone_id.")}, tmp_path / "id.pth")
    outcome = run_embed(*all_pictures(folder)[:2], "--json", of=tmp_path / "id.pth")
    assert outcome.status == 0 and "holds no age branch" in outcome.err and "age_groups" not in json.loads(outcome.out)
    assert run_embed(folder / "001", "-o", tmp_path / "f.npz", of=tmp_path / "id.pth").status == 0
    assert read_features(tmp_path / "f.npz").age_probabilities is None


def test_people_are_grouped_by_a_cosine_or_by_a_calibrated_rate(run_embed, calibration, folder, tmp_path):
    """Folders of links, and a table; the threshold of the rate says that it was measured on drawn faces."""
    outcome = run_embed(folder, "--group", "0.8", "--linkage", "average", "-o", tmp_path / "people", "--json")
    assert outcome.status == 0, outcome.err
    plain, links = json.loads(outcome.out), sorted((tmp_path / "people").glob("person_*/*"))
    assert plain["num_people"] == len({link.parent for link in links}) and plain["num_pictures"] == len(links)
    assert sorted(link.resolve() for link in links) == [path.resolve() for path in all_pictures(folder)]
    content = json.loads(calibration.read_text())
    content["models"][0]["benchmarks"]["fgnet"]["drawn"] = True
    (tmp_path / "drawn.json").write_text(json.dumps(content))
    flags = ("--group", "1e-1", "-o", tmp_path / "people.csv", "--calibration", tmp_path / "drawn.json")
    outcome = run_embed(folder, *flags)
    assert outcome.status == 0 and "At FAR 1e-1 the threshold is " in outcome.out, outcome.err
    assert "That threshold was measured on the drawn faces of FG-NET" in outcome.out
    assert (tmp_path / "people.csv").read_text().startswith("name,person,num_pictures\n001/001A")
