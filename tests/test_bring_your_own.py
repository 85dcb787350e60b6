"""docs/BRING_YOUR_OWN.md: its commands run in their order, from stand-ins for what users bring to the reports."""

import itertools
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from golden_weights import fill
from photographs import KnownFaces, drawn, empty_scene, place
from scripts import ROOT, TINY, load_script
from test_layouts_of_others import CASES, lively
from test_onnx_models import linear

from data.pairs import find_pair_list
from evaluation.embeddings.feature_files import write_embeddings
from meta import BENCHMARKS, WEIGHT_FILES
from models.iefp import IEFP

PAGE = ROOT / "docs" / "BRING_YOUR_OWN.md"
PEOPLE = {"train": ("anna", "bob", "carl"), "test": ("dora", "emil")}
NUMBERS = (1, 2, 7, 8, 9)  # of each person's photographs
HERE = ("--device", "cpu", "--workers", "0")
# What makes the page's commands small; later flags win. The rate of false accepts suits a set of ten impostor pairs.
SMALLER = [
    ({"train.py"}, (*SMALL, "--epochs", "1", "--warmup-steps", "1")),
    ({"test.py", "--weights"}, HERE),
    ({"test.py", "--embeddings"}, ("--device", "cpu")),
    ({"purify.py"}, HERE),
    ({"embed.py"}, HERE),
    ({"embed.py", "--far"}, ("--far", "1e-1")),
    ({"embed.py", "--group"}, ("--group", "1e-1")),
    ({"prepare.py", "align"}, ("--workers", "1")),
    ({"prepare.py", "ages", "--weights"}, HERE),
]


def commands() -> list[list[str]]:
    """The words of each line of the page's bash blocks, in their order."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


def take_photographs(folder: Path) -> dict:
    """People in scenes, one folder each; gives what KnownFaces knows of them."""
    known, sizes = {}, itertools.count(230)
    people = [(part, person) for part, names in PEOPLE.items() for person in names]
    for number, (part, person) in enumerate(people):
        (folder / part / person).mkdir(parents=True)
        for k in NUMBERS:
            scene = empty_scene((next(sizes), 220), seed=k)
            known[scene.size] = [(place(scene, drawn(number, 6 * k), (115, 110), 5 * k), 0.9)]
            scene.save(folder / part / person / f"IMG_{k}.jpg", quality=95)
    return known


def write_lists(folder: Path, faces: Path) -> None:
    """my_pairs.csv, LFW's pairs.txt with its photographs, and labels.csv about `faces`."""
    names = {person: [f"{person}/IMG_{k}.jpg" for k in NUMBERS] for person in PEOPLE["test"]}
    genuine = [(*pair, 1) for some in names.values() for pair in itertools.combinations(some, 2)]
    impostor = [(*pair, 0) for pair in itertools.product(*names.values())][: len(genuine)]
    lines = [f"{a},{b},{same}" for pairs in zip(genuine, impostor, strict=True) for a, b, same in pairs]
    (folder / "my_pairs.csv").write_text("\n".join(["image1,image2,same", *lines]) + "\n")
    lines = [f"{len(genuine)}"]
    for a, b, same in genuine + impostor:
        (name_a, a), (name_b, b) = (re.fullmatch(r"(\w+)/IMG_(\d)\.jpg", path).groups() for path in (a, b))
        lines.append("\t".join((name_a, a, b) if same else (name_a, a, name_b, b)))
    for person, k in itertools.product(names, NUMBERS):
        photograph = folder / "lfw" / "images" / person / f"{person}_{k:04d}.jpg"
        photograph.parent.mkdir(parents=True, exist_ok=True)
        photograph.hardlink_to(folder / "photos" / "test" / person / f"IMG_{k}.jpg")
    (folder / "lfw" / "pairs.txt").write_text("\n".join(lines) + "\n")
    # FG-NET's names hold the ages: 001A03.JPG.
    rows = [f"{path.relative_to(faces).as_posix()};D70;{int(path.stem[4:6])}" for path in sorted(faces.rglob("*.JPG"))]
    (folder / "labels.csv").write_text("\n".join(["file;camera;years", *rows]) + "\n")


def write_models(folder: Path) -> None:
    """Other people's, and embeddings of the pictures of my_pairs.csv."""
    torch.save(fill(IEFP(TINY, 0, None)).backbone_id.state_dict(), folder / "backbone.pth")
    for name, case in (("adaface_ir50_ms1mv2.ckpt", "AdaFace, of Lightning"), ("backbone-36000", "MTLFace")):
        build, content, _ = CASES[case]
        torch.save(content(lively(build())), folder / name)
    linear(folder / "w600k_r50.onnx", size=12)
    linear(folder / "mobilefacenet.onnx", (1, 3, 112, 96), 20)
    names = [f"{person}/IMG_{k}.jpg" for person in PEOPLE["test"] for k in NUMBERS]
    write_embeddings(folder / "others.npz", names, np.random.default_rng(0).normal(size=(len(names), 8)))


@pytest.fixture
def known(run_main, tiny_faces, weights, age_weights, tmp_path, monkeypatch):
    """A working folder with all that readers of the page have; gives what a detector knows of the photographs."""
    known = take_photographs(tmp_path / "photos")
    shutil.copytree(tiny_faces / BENCHMARKS["fgnet"].folders[0], tmp_path / "faces")
    write_lists(tmp_path, tmp_path / "faces")
    write_models(tmp_path)
    for key, file in (("iefp", weights), ("age", age_weights)):
        (tmp_path / WEIGHT_FILES[key].path).parent.mkdir()
        shutil.copy(file, tmp_path / WEIGHT_FILES[key].path)
    calfw = BENCHMARKS["calfw"]
    made = run_main("prepare", "bin", "--pairs", find_pair_list(tiny_faces, calfw), "--images",
                    tiny_faces / calfw.folders[0], "--output", tmp_path / "agedb_30.bin", "--reencode")  # fmt: skip
    assert made.status == 0, made.err
    (tmp_path / "face_detection_yunet_2023mar.onnx").write_bytes(b"a model")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    return known


def test_the_commands_of_the_page_lead_from_what_people_have_to_reports(run_main, known, monkeypatch):
    detector = KnownFaces(known)
    for module in (sys.modules["data.alignment.detectors"], load_script("test")):
        monkeypatch.setattr(module, "open_detector", lambda path: detector)
    monkeypatch.setattr("evaluation.report.page.svg_of", lambda plot: b"")
    results = []
    for python, script, *flags in commands():
        assert python == "python"
        more = [word for words, of_these in SMALLER if words <= {script, *flags} for word in of_these]
        outcome = run_main(script.removesuffix(".py"), *flags, *more)
        assert outcome.status == 0, (script, *flags, outcome.err)
        for flag, value in itertools.pairwise(flags):
            if flag in ("-o", "--output", "--link"):
                assert Path(value).exists(), value
                results += [Path(value)] if script == "test.py" else []
    assert len(results) >= 9 and detector.num_searched > 60
    for folder in results:
        models = json.loads((folder / "results.json").read_text())["models"]
        assert all(model["results"] and not model["did_not_run"] for model in models)
        assert (folder / "report.html").is_file() and (folder / "calibration.json").is_file()
