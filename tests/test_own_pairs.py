"""test.py --pairs: lists of the user's with the figures of the benchmark they are, photographs aligned; .bin sets."""

import json

import numpy as np
import pytest
from PIL import Image
from refusals import refused
from scripts import load_script

from data.alignment import detectors
from data.alignment.photos import Aligner
from data.alignment.template import TEMPLATE
from data.benchmarks import open_eval_set, specs_of_pair_lists
from data.layout import DRAWN_FACES
from data.pairs import find_pair_list
from data.verification_bins import read_verification_bin
from evaluation.embeddings.feature_files import write_embeddings
from meta import BENCHMARKS

CALFW = BENCHMARKS["calfw"]


@pytest.fixture
def run_pairs(run_test, tiny_faces, tmp_path):
    """Runs test.py on a list; gives what came of it and the one set's results. The cache stays away from the data."""

    def run(pairs, images, *flags):
        outcome, model = run_test(tiny_faces, "--pairs", pairs, "--images", images, "--cache-folder",
                                  tmp_path / "cache", *flags)  # fmt: skip
        return outcome, model.get("results", {})

    return run


def test_a_list_of_ones_own_gives_the_figures_of_the_benchmark(run_test, run_pairs, tiny_faces, tmp_path):
    """And a calibration; the published benchmarks run beside it only where they are named."""
    own = tmp_path / "mine.csv"
    lines = find_pair_list(tiny_faces, CALFW).read_text().replace(" ", ",")
    own.write_text("left,right,same\n" + lines)
    outcome, results = run_pairs(own, tiny_faces / CALFW.folders[0], "--benchmarks", "calfw", "--analysis")
    assert outcome.status == 0, outcome.err
    assert list(results) == ["calfw", "mine.csv"] and "mine.csv: 20 pairs, folds by the order of" in outcome.out
    assert results["calfw"]["verification"] == results["mine.csv"]["verification"]
    assert results["calfw"]["analysis"]["verification"] == results["mine.csv"]["analysis"]["verification"]
    (model,) = json.loads((tmp_path / "results" / "calibration.json").read_text())["models"]
    assert model["benchmarks"]["mine.csv"] | {"title": "CALFW"} == model["benchmarks"]["calfw"]
    outcome, results = run_pairs(own, tiny_faces / CALFW.folders[0])
    assert outcome.status == 0 and list(results) == ["mine.csv"]


def test_what_is_wrong_is_said_before_anything_is_embedded(run_pairs, tiny_faces, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.models_under_test.extract", lambda *_, **__: pytest.fail("pictures were embedded"))
    images, good = tiny_faces / CALFW.folders[0], find_pair_list(tiny_faces, CALFW)
    (tmp_path / "one_kind.csv").write_text("name_a,name_b,label\nx.jpg,y.jpg,1\n")
    (tmp_path / "photos").mkdir()
    for name in {name for line in good.read_text().splitlines() for name in line.split()[:2]}:
        Image.new("RGB", (250, 250)).save(tmp_path / "photos" / name)
    for pairs, folder, words in [
        (tmp_path / "none.txt", images, "--pairs"),
        (good, tmp_path / "nowhere", "--images"),
        (good, images.parent, "lacks 40 of the 40 images in the pair list"),
        (tmp_path / "one_kind.csv", images, "holds genuine pairs only"),
        (good, tmp_path / "photos", "are not 112x112 (250x250): give --detector"),
    ]:
        outcome, results = run_pairs(pairs, folder)
        assert outcome.status == 2 and words in outcome.err and outcome.err.count("\n") == 1 and not results
    outcome, _ = run_pairs(good, images, "--detector", tmp_path / "none.txt")
    assert outcome.status == 2 and "none.txt does not exist" in outcome.err


class Finder(detectors.Detector):
    """Stands in for a detector: finds the face that was put at (60, 30), none in blue pictures."""

    SURE_SCORE = 0.8

    @classmethod
    def open(cls, path):
        raise NotImplementedError

    def find_faces(self, picture: Image.Image) -> detectors.FoundFaces:
        if picture.size == (112, 112):
            return detectors.FoundFaces(TEMPLATE[None], np.ones(1))
        is_blue = picture.getpixel((80, 80)) == (0, 0, 255)
        points = np.zeros((0, 5, 2)) if is_blue else (TEMPLATE + (60, 30))[None]
        return detectors.FoundFaces(points, np.ones(len(points)))


def test_photographs_are_aligned_and_give_the_figures_of_aligned_faces(run_pairs, tiny_faces, tmp_path, monkeypatch):
    for module in (detectors, load_script("test")):
        monkeypatch.setattr(module, "open_detector", lambda path: Finder())
    pairs, faces, photos = find_pair_list(tiny_faces, CALFW), tmp_path / "faces", tmp_path / "photos"
    faces.mkdir()
    photos.mkdir()
    for path in (tiny_faces / CALFW.folders[0]).iterdir():
        face, photo = Image.open(path), Image.new("RGB", (230, 190), (90, 90, 90))
        photo.paste(face, (60, 30))
        face.save(faces / path.with_suffix(".png").name)
        photo.save(photos / path.with_suffix(".png").name)
    _, aligned = run_pairs(pairs, faces)
    outcome, results = run_pairs(pairs, photos, "--detector", "yunet.onnx")
    assert outcome.status == 0, outcome.err
    (of_aligned,), (of_photos,) = aligned.values(), results.values()
    for how in ("concatenate", "grey_pixels"):  # alignment resamples, if only by a shift
        of_both = (one["verification"][how]["pooled_auc_percent"] for one in (of_photos, of_aligned))
        assert next(of_both) == pytest.approx(next(of_both), abs=2)
    assert of_photos["num_aligned_detector"] == 40
    first = pairs.read_text().split()[0].replace(".jpg", ".png")
    Image.new("RGB", (200, 200), (0, 0, 255)).save(photos / first)
    (spec,) = specs_of_pair_lists((pairs,), photos, Aligner(detector_path="yunet.onnx"), workers=0)
    words = f"1 of the 40 pictures can't be aligned, the first: no face was found in '{first}'"
    assert refused(open_eval_set, spec, str).startswith(words)
    outcome, results = run_pairs(pairs, photos, "--detector", "yunet.onnx", "--allow-missing")
    assert outcome.status == 0 and next(iter(results.values()))["num_pairs_dropped"] == 1
    assert (
        "1 pairs left out, 1 images missing" in outcome.out
        and f"left out: no face was found in '{first}'" in outcome.out
    )


@pytest.fixture
def two_bins(run_main, tiny_faces, tmp_path):
    """The pairs of CALFW, in either order, as two sets."""
    lines = find_pair_list(tiny_faces, CALFW).read_text().splitlines(keepends=True)
    for name, part in (("a.bin", lines), ("b.bin", lines[::-1])):
        (tmp_path / "list.txt").write_text("".join(part))
        made = run_main("prepare", "bin", "--pairs", tmp_path / "list.txt", "--images", tiny_faces / CALFW.folders[0],
                        "--output", tmp_path / name, "--reencode")  # fmt: skip
        assert made.status == 0, made.err
    return tmp_path / "a.bin", tmp_path / "b.bin"


def test_an_unpacked_set_is_a_list_that_test_py_reads_back(run_main, run_pairs, two_bins, tmp_path):
    path, _ = two_bins
    path.with_name(f"{path.name}.{DRAWN_FACES}").touch()
    outcome = run_main("prepare", "unpack", path, "--output", tmp_path / "un")
    assert outcome.status == 0, outcome.err
    pictures = sorted((tmp_path / "un" / "images").iterdir())
    faces = read_verification_bin(path).images
    assert [one.name for one in pictures] == sorted(one.name for one in pictures) and len(pictures) == 40
    assert [one.read_bytes() for one in pictures] == [faces.read(i) for i in range(40)]
    outcome, results = run_pairs(tmp_path / "un" / "pairs.csv", tmp_path / "un" / "images", "--bins", path)
    assert outcome.status == 0, outcome.err
    assert results["pairs.csv"]["drawn"] is True and results["a.bin"]["drawn"] is True
    of_bin, of_list = results["a.bin"]["verification"], results["pairs.csv"]["verification"]
    assert {how: of_bin[how] for how in of_list} == of_list
    again = run_main("prepare", "unpack", path, "--output", tmp_path / "un")
    assert again.status == 2 and "already exists and is not empty" in again.err
    idle = run_main("prepare", "unpack", path, "--output", tmp_path / "x", "--names", "plain")
    assert idle.status == 2 and "--names does nothing with a verification set" in idle.err
    dry = run_main("prepare", "unpack", path, "--output", tmp_path / "x", "--dry-run")
    assert dry.status == 0 and "20 pairs of 40 pictures, not written" in dry.out and not (tmp_path / "x").exists()


def test_one_file_of_embeddings_serves_several_sets(run_main, two_bins, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.report.page.svg_of", lambda plot: b"")
    names, rows, draw = [], [], np.random.default_rng(0)
    for path in two_bins:
        faces = read_verification_bin(path).images
        names += [faces.key(i) for i in range(len(faces))]
        rows.append(draw.normal(size=(len(faces), 8)))
    assert names[:2] == ["a.bin/0", "a.bin/1"] and "b.bin/0" in names
    write_embeddings(tmp_path / "both.npz", names, np.concatenate(rows))
    flags = ["--benchmarks", "--no-analysis", "--device", "cpu", "--output", tmp_path / "out"]
    both = run_main("test", "--embeddings", tmp_path / "both.npz", "--bins", *two_bins, *flags)
    assert both.status == 0, both.err
    (model,) = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    assert list(model["results"]) == ["a.bin", "b.bin"]
    scores = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in rows[0].reshape(-1, 2, 8)]
    genuine = read_verification_bin(two_bins[0]).genuine
    assert model["results"]["a.bin"]["verification"]["concatenate"]["pooled_auc_percent"] == pytest.approx(
        100 * np.mean([a > b for a in np.array(scores)[genuine] for b in np.array(scores)[~genuine]]))  # fmt: skip
    # Numbers alone, as earlier versions named the pictures, do for one set.
    write_embeddings(tmp_path / "one.npz", [name.partition("/")[2] for name in names[:40]], rows[0])
    one = run_main("test", "--embeddings", tmp_path / "one.npz", "--bins", two_bins[0], *flags)
    assert one.status == 0, one.err
