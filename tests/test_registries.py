"""An entry in a registry is a flag's choice, stands in --help and runs: toy entries, registered before the scripts."""

import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import meta
from data.alignment import detectors
from data.alignment.landmarks import LANDMARK_FORMATS, landmark_format
from data.alignment.template import TEMPLATE
from meta import BENCHMARKS, Benchmark, register_benchmark

# Their settings are made when they are imported.
RELEASES = ("commands", "flags", "photographs", "fgnet", "morph2", "calfw", "cacd", "agedb")
WITH_SETTINGS = ("training.config", *(f"data.releases.{name}" for name in RELEASES),
                 *(f"script_{name}" for name in ("train", "test", "export", "prepare", "embed")))  # fmt: skip
REGISTRIES = (meta._benchmarks, LANDMARK_FORMATS, detectors.DETECTORS)


@pytest.fixture(autouse=True)
def fresh_scripts():
    """run_main loads the scripts anew, so that they know what the test has registered; afterwards all is as before."""
    loaded = {name: sys.modules.pop(name) for name in WITH_SETTINGS if name in sys.modules}
    entries = [dict(registry) for registry in REGISTRIES]
    yield
    for name in WITH_SETTINGS:
        sys.modules.pop(name, None)
    sys.modules.update(loaded)
    for name, module in loaded.items():
        package, _, own = name.rpartition(".")
        if package:
            setattr(sys.modules[package], own, module)
    for registry, before in zip(REGISTRIES, entries, strict=True):
        registry.clear()
        registry.update(before)
    detectors.open_detector.cache_clear()


@pytest.fixture
def help_of(run_main):
    def words(*command) -> str:
        """The help on one line, without the frame around it."""
        return " ".join(run_main(*command, "--help").out.replace("│", " ").split())

    return words


def toy(**fields) -> Benchmark:
    known = {"pattern": None, "source": "https://example.org/toy", "unpacked_into": "Toy", "num_pairs": 20}
    return Benchmark("toy", "Toy pairs", "ten_fold_verification", ("Toy/faces",), **known, **fields)


def test_a_pair_list_benchmark_that_is_registered_can_be_tested_checked_and_validated_on(
    run_main, run_test, help_of, tiny_faces, tmp_path
):
    register_benchmark(toy(pair_lists=("Toy/pairs.txt",)))
    assert "cacd_vs,calfw,toy" in help_of("test") and "cacd_vs,calfw,toy" in help_of("export")
    assert "calfw, toy, or paths of InsightFace verification sets" in help_of("train")
    assert "cacd_vs calfw toy age_weights" in help_of("prepare", "check")

    calfw = BENCHMARKS["calfw"]
    shutil.copytree(tiny_faces / calfw.folders[0], tmp_path / "Toy" / "faces")
    shutil.copy(tiny_faces / calfw.pair_lists[0], tmp_path / "Toy" / "pairs.txt")
    ran, model = run_test(tmp_path, "--benchmarks", "toy")
    assert ran.status == 0 and "| Toy pairs " in ran.out, ran.err
    assert list(model["results"]) == ["toy"] and model["results"]["toy"]["num_pairs"] == 20
    checked = run_main("prepare", "check", "toy", "--face-dataset", tmp_path, "--workers", 0)
    assert checked.status == 0 and "20 pairs of 40 pictures" in checked.out
    (tmp_path / "Toy" / "pairs.txt").unlink()
    ran, _ = run_test(tmp_path, "--benchmarks", "toy")
    assert ran.status == 2 and "Toy/pairs.txt does not exist: get https://example.org/toy" in ran.err
    with pytest.raises(ValueError, match="twice"):
        register_benchmark(toy())


def test_pairs_of_a_registered_rule_need_no_list(run_main, run_test, tiny_faces, tmp_path):
    lines = (tiny_faces / BENCHMARKS["calfw"].pair_lists[0]).read_text().splitlines()
    pairs = [(a, b, label == "1") for a, b, label in map(str.split, lines)]
    register_benchmark(toy(pair_rule=lambda: pairs))
    shutil.copytree(tiny_faces / BENCHMARKS["calfw"].folders[0], tmp_path / "Toy" / "faces")
    ran, _ = run_test(tmp_path, "--benchmarks", "toy")
    assert ran.status == 0 and "| Toy pairs " in ran.out, ran.err
    assert run_main("prepare", "check", "toy", "--face-dataset", tmp_path, "--workers", 0).status == 0


@pytest.fixture
def photo(tmp_path):
    """A photograph whose face's five points are those of the template, moved by 40 pixels."""
    path = tmp_path / "photo.png"
    Image.effect_noise((300, 200), 60).convert("RGB").save(path)
    return path


def embed(run_main, weights, tmp_path, *flags):
    return run_main("embed", *flags, "-o", tmp_path / "faces.npz", "--weights", weights, "--workers", 0,
                    "--device", "cpu")  # fmt: skip


def test_a_landmark_format_that_is_registered_is_read(run_main, help_of, photo, weights, tmp_path):
    @landmark_format(".toy", shown="one name a line, all moved by 40")
    def read_toy(path, table):
        for name in path.read_text().split():
            table.add(name, (TEMPLATE + 40).ravel().tolist(), str(path))

    shown = ".toy (one name a line, all moved by 40)"
    assert shown in help_of("embed") and shown in help_of("prepare", "align-fgnet")
    (tmp_path / "points.toy").write_text("photo.png")
    ran = embed(run_main, weights, tmp_path, photo, "--landmarks", tmp_path / "points.toy")
    assert ran.status == 0 and "alignment: 1 landmarks" in ran.out, ran.err
    (tmp_path / "points.other").write_text("photo.png")
    ran = embed(run_main, weights, tmp_path, photo, "--landmarks", tmp_path / "points.other", "--force")
    assert ran.status == 2 and "has no extension of .csv, .json, .lst, .txt, .toy" in ran.err


def test_a_detector_that_is_registered_finds_the_faces(run_main, help_of, photo, weights, tmp_path):
    @detectors.register_detector("Toy", "toy.onnx", "https://example.org/toy", needs="nothing")
    class Toy(detectors.Detector):
        SURE_SCORE = 0.5

        @classmethod
        def open(cls, path):
            return cls()

        def find_faces(self, picture):
            count = int(picture.size == (300, 200))
            return detectors.FoundFaces((TEMPLATE + 40)[None][:count], np.ones(count))

    assert "or Toy (toy.onnx; needs nothing)" in help_of("embed")
    missing = embed(run_main, weights, tmp_path, photo, "--detector", tmp_path / "toy.onnx")
    assert missing.status == 2 and "or Toy's, toy.onnx of https://example.org/toy" in missing.err
    (tmp_path / "toy.onnx").write_bytes(b"\0 no network that YuNet's reader knows")
    ran = embed(run_main, weights, tmp_path, photo, "--detector", tmp_path / "toy.onnx")
    assert ran.status == 0 and "alignment: 1 detector" in ran.out, ran.err
