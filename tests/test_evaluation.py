"""test.py on a tiny set: what it reports, that it agrees with the protocols done by hand, missing and bad data."""

import contextlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import ROOT, load_script
from torch.nn import functional as F

from data.layout import mark_drawn
from data.pairs import read_pair_list
from data.verification_bins import write_verification_bin
from evaluation.embeddings.feature_files import write_embeddings
from evaluation.protocols import mates_against_rest
from models.weights import load_for_embedding
from utils.cli import parse_config

FOLDERS = ("ID_processed_FGNET", "ID_processed_morph2_2", "CACD_VS", "CALFW")
CALFW_LIST = "CALFW/txts/CALFW_img_pairs_labels.txt"


@pytest.fixture
def faces(tiny_faces, tmp_path) -> Path:
    """A copy of the benchmarks, to be damaged."""
    for folder in FOLDERS:
        shutil.copytree(tiny_faces / folder, tmp_path / "faces" / folder)
    return tmp_path / "faces"


@pytest.fixture(scope="module")
def whole(tiny_faces, weights, tmp_path_factory) -> Path:
    """What test.py writes of all benchmarks with all that it measures, and printed.txt."""
    script, output, printed = load_script("test"), tmp_path_factory.mktemp("whole"), io.StringIO()
    flags = ["--weights", weights, "--face-dataset", tiny_faces, "--output", output, "--workers", 0, "--device", "cpu"]
    with contextlib.redirect_stdout(printed):
        assert script.test(parse_config(script.TestConfig, list(map(str, flags)))) == 0
    (output / "printed.txt").write_text(printed.getvalue())
    return output


@pytest.fixture
def results(whole) -> dict:
    return json.loads((whole / "results.json").read_text())["models"][0]["results"]


@pytest.fixture(scope="module")
def by_hand(tiny_faces, weights) -> tuple[list[Path], np.ndarray]:
    """FG-NET's pictures and their embeddings (N, 1024): both views one after the other, picture by picture."""
    model, _ = load_for_embedding(weights)
    paths, rows = sorted((tiny_faces / FOLDERS[0]).glob("*/*.JPG")), []
    for path in paths:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float()
        image = (pixels / 255 - 0.5) / 0.5
        with torch.no_grad():
            views = [F.normalize(model.identity_features(view.unsqueeze(0)))[0] for view in (image, image.flip(-1))]
        rows.append(F.normalize(torch.cat(views), dim=0).numpy())
    return paths, np.stack(rows)


def test_test_sh_hands_its_flags_to_test_py():
    command = [ROOT / "test.sh", "--weights", "a b.pth", "--no-analysis"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", env={"PYTHON": "/bin/echo"})
    assert ended.stdout == "test.py --weights a b.pth --no-analysis\n"


def test_all_four_benchmarks_run_and_are_printed(whole, results):
    printed = (whole / "printed.txt").read_text()
    assert set(results) == {"fgnet", "morph2_3000", "morph2_10000", "cacd_vs", "calfw"}
    for title in ("FG-NET", "MORPH2 3,000", "MORPH2 10,000", "CACD-VS", "CALFW"):
        assert f"| {title} " in printed
    assert (whole / "results.md").read_text().strip() in printed
    for result in (results["fgnet"]["leave_one_out"], results["morph2_3000"]["probe_gallery"]):
        assert set(result) == {"concatenate", "add", "grey_pixels", "chance"}  # baselines stand beside
    assert results["morph2_3000"]["probe_gallery"]["chance"]["rank1_percent"] == pytest.approx(100 / 3)


def test_beyond_the_published_figures_each_benchmark_has_its_analysis(whole, results):
    text = (whole / "results.json").read_text()
    assert json.loads(text)["schema"] == 3 and not {"NaN", "Infinity"} & set(re.findall(r"\w+", text))
    of = {name: result["analysis"] for name, result in results.items()}
    assert {"verification", "intervals", "cmc", "age_gap", "leaks", "errors"} <= of["fgnet"].keys()
    assert {"rank1", "errors", "age_gap", "younger_age"} <= of["morph2_3000"].keys()
    club = of["fgnet"]["leaks"]["club"]
    assert np.isfinite([club["club_nats"], club["shuffled_club_nats"]]).all()
    rank1 = results["morph2_3000"]["probe_gallery"]["concatenate"]["rank1_percent"]
    assert of["morph2_3000"]["cmc"]["cmc_percent"][0] == pytest.approx(rank1)
    for name in ("cacd_vs", "calfw"):  # exact figures and the pooled ones of the published protocol are the same
        exact, pooled = of[name]["verification"]["figures"], results[name]["verification"]["concatenate"]
        assert exact["pooled_auc_percent"] == pytest.approx(pooled["pooled_auc_percent"])
        assert exact["tar_at_far_1e-1_percent"] is not None and exact["tar_at_far_1e-3_percent"] is None
        assert "needs 1,000 impostor pairs" in exact["tar_at_far_1e-3_reason"]
        scores = [pair["cosine"] for pair in of[name]["errors"]["false_matches"]]
        assert scores == sorted(scores, reverse=True)


def test_leave_one_out_is_what_a_plain_loop_over_the_pictures_gives(results, by_hand):
    paths, embeddings = by_hand
    hits = 0
    for probe, path in enumerate(paths):
        others = [other for other in range(len(paths)) if other != probe]
        nearest = max(others, key=lambda other: float(embeddings[probe] @ embeddings[other]))
        hits += paths[nearest].parent == path.parent
    measured = results["fgnet"]["leave_one_out"]["concatenate"]["rank1_percent"]
    assert measured == pytest.approx(100 * hits / len(paths))


def test_drawn_faces_are_named_so_everywhere_and_have_no_published_figures_beside_them(run_test, faces, tmp_path):
    """9: a set that prepare.py synthetic marked; one that is not marked stands as it is."""
    mark_drawn(faces / "CALFW")
    pairs = read_pair_list(faces / CALFW_LIST, faces / "CALFW" / "processed_CALFW_2")
    bins = faces / "calfw.bin", faces / "other.bin"
    for path in bins:
        write_verification_bin(pairs, path)
    mark_drawn(bins[1], drawn=False)
    outcome, model = run_test(faces, "--benchmarks", "fgnet", "calfw", "--bins", *bins)
    assert outcome.status == 0, outcome.err
    results = model["results"]
    assert {name: result["drawn"] for name, result in results.items()} == {
        "fgnet": False, "calfw": True, "calfw.bin": True, "other.bin": False,
    }  # fmt: skip
    assert "| CALFW (drawn faces) " in outcome.out and "| FG-NET " in outcome.out
    page = (tmp_path / "results" / "report.html").read_text()
    assert "<h1>Face recognition across ages: test report (partly drawn faces)</h1>" in page
    assert "Here these are CALFW (drawn faces), calfw.bin (drawn faces)." in page
    assert "FG-NET: measured and published" in page and "CALFW (drawn faces): measured" not in page


def test_the_report_shows_pictures_unless_switched_off(run_test, tiny_faces, whole, tmp_path):
    assert run_test(tiny_faces, "--benchmarks", "morph2", "--analysis", "--no-pictures")[0].status == 0
    for folder, has_pictures in ((whole, True), (tmp_path / "results", False)):
        page = (folder / "report.html").read_text()
        assert ("data:image/jpeg;base64," in page) == has_pictures and "probe_3000/" in page


def test_a_model_that_knows_people_by_pixels_gets_every_protocol_right(run_test, faces):
    """Pictures of one person are made identical: whatever the weights, every figure has to be perfect."""
    for folder in FOLDERS[:2]:
        first: dict[str, Path] = {}
        for path in sorted((faces / folder).rglob("*.JPG")):
            if first.setdefault(path.parent.name, path) != path:
                shutil.copy(first[path.parent.name], path)
    for images, pair_list in (("CACD_VS/processed_CACDVS_2", "CACD_VS/txt/CACD_VS_pairs_labels.txt"),
                              ("CALFW/processed_CALFW_2", CALFW_LIST)):  # fmt: skip
        for line in (faces / pair_list).read_text().splitlines():
            a, b, genuine = line.split()
            if genuine == "1":
                shutil.copy(faces / images / a, faces / images / b)
    outcome, report = run_test(faces)
    assert outcome.status == 0
    for join in ("concatenate", "add"):
        results = report["results"]
        assert results["fgnet"]["leave_one_out"][join]["rank1_percent"] == 100
        assert results["fgnet"]["mates_against_rest"][join]["cmc_percent_1"] == 100
        for count in (3000, 10000):
            assert results[f"morph2_{count}"]["probe_gallery"][join]["rank1_percent"] == 100
        for name in ("cacd_vs", "calfw"):
            assert results[name]["verification"][join]["pooled_auc_percent"] == 100


def test_the_batch_size_does_not_change_the_figures(run_test, tiny_faces, results):
    flags = ("--benchmarks", "fgnet", "calfw", "--no-keep-embeddings", "--batch-size", 1)
    for name, result in run_test(tiny_faces, *flags)[1]["results"].items():
        assert result == {key: results[name][key] for key in result}


def test_a_missing_benchmark_is_named_the_others_run_and_the_status_says_so(run_test, faces):
    shutil.rmtree(faces / "CALFW")
    outcome, report = run_test(faces)
    assert outcome.status == 2 and "Traceback" not in outcome.err
    assert set(report["results"]) == {"fgnet", "morph2_3000", "morph2_10000", "cacd_vs"}
    for words in ("CALFW", str(faces / "CALFW" / "processed_CALFW_2"), "drive.google.com", "prepare.py synthetic"):
        assert words in outcome.err and words in report["did_not_run"]["calfw"] + " CALFW"
    assert outcome.err.count("did not run") == 1, outcome.err


def rewrite(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


DAMAGES = {
    "a folder of MORPH2 is missing": ("morph2", lambda faces: shutil.rmtree(
        faces / "ID_processed_morph2_2" / "gallery_10000"), "gallery_10000"),
    "the gallery lacks a subject": ("morph2", lambda faces: shutil.rmtree(
        min((faces / "ID_processed_morph2_2" / "gallery_3000").iterdir())), "The gallery lacks"),
    "a line of a list is malformed": ("calfw", lambda faces: rewrite(
        faces / CALFW_LIST, lambda text: text.replace(b" 1\n", b" maybe\n", 1)), "labels.txt', line 1, reads"),
    "a picture is missing": ("cacd_vs", lambda faces: min(
        (faces / "CACD_VS/processed_CACDVS_2").iterdir()).unlink(), "--allow-missing"),
    "a picture is cut off": ("fgnet", lambda faces: rewrite(
        min((faces / FOLDERS[0]).glob("*/*.JPG")), lambda content: content[:600]), "001A"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_with_a_benchmark_is_one_sentence(run_test, faces, damage):
    benchmark, spoil, words = DAMAGES[damage]
    spoil(faces)
    outcome, report = run_test(faces, "--benchmarks", benchmark)
    assert outcome.status == 2 and words in outcome.err and outcome.err.count("test.py: ") == 1, outcome.err
    if benchmark == "cacd_vs":
        outcome, report = run_test(faces, "--benchmarks", "cacd_vs", "--allow-missing")
        assert outcome.status == 0 and report["results"]["cacd_vs"]["num_pairs_dropped"] == 1
        assert "1 pairs left out" in outcome.out
    elif benchmark == "morph2":  # the other setting ran
        assert len(report["results"]) == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [("pretrained_IEFP_models/ms1mv3_iresnet50_IEFP.pth", "drive.google.com"), (__file__, "Accepted are")],
)
def test_weights_that_cannot_be_taken_are_one_sentence(run_test, tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)  # the published files may well lie in the project
    outcome, report = run_test(tmp_path, "--weights", path)
    assert outcome.status == 2 and words in outcome.err and not report
    assert outcome.err.count("\n") == 1 and "Traceback" not in outcome.err


def test_a_bin_of_calfws_pairs_gives_calfws_figures_and_its_sha256(run_test, tiny_faces, results, tmp_path):
    pairs = read_pair_list(tiny_faces / CALFW_LIST, tiny_faces / "CALFW" / "processed_CALFW_2")
    written = write_verification_bin(pairs, tmp_path / "mine.bin")
    outcome, report = run_test(tiny_faces, "--benchmarks", "calfw", "--bins", tmp_path / "mine.bin")
    assert outcome.status == 0 and written.sha256 in outcome.out
    of_bin, of_list = report["results"]["mine.bin"], results["calfw"]["verification"]
    assert of_bin["sha256"] == written.sha256
    assert {key: of_bin["verification"][key] for key in of_list} == of_list


def test_distractors_among_fgnets_people_can_only_lower_ranks(run_test, tiny_faces, results, by_hand, tmp_path):
    distractors = np.random.default_rng(0).normal(size=(50, 1024)).astype(np.float32)
    np.save(tmp_path / "distractors.npy", distractors)
    outcome, report = run_test(tiny_faces, "--benchmarks", "fgnet", "--distractors", tmp_path / "distractors.npy")
    assert outcome.status == 0, outcome.err
    among = report["results"]["fgnet"]["mates_among_distractors"]["concatenate"]
    alone = results["fgnet"]["mates_against_rest"]["concatenate"]
    assert all(alone[rank] >= among[rank] for rank in alone) and results["fgnet"]["analysis"]["cmc"]["num_gallery"]
    paths, embeddings = by_hand
    people = np.array([path.parent.name for path in paths])
    assert among == pytest.approx(mates_against_rest(embeddings, people, distractors))


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "in memory"])
def test_pictures_of_distractors_are_embedded_folder_and_records_alike(run_test, tiny_faces, run_main, tmp_path, kept):
    """The distractors are FG-NET's own pictures: each probe then finds its double, and a mate is second at best."""
    folder, records = tiny_faces / FOLDERS[0], tmp_path / "packed"
    assert run_main("prepare", "pack", "--data", folder, "--output", records / "train.rec").status == 0
    flags = ("--benchmarks", "fgnet", "--analysis", *(() if kept else ("--no-keep-embeddings",)))
    found = []
    for distractors in (folder, records, records / "train.rec") if kept else (folder,):
        outcome, report = run_test(tiny_faces, *flags, "--distractors", distractors)
        assert outcome.status == 0, outcome.err
        found.append(report["results"]["fgnet"])
    for one in found:
        assert one["mates_among_distractors"] == found[0]["mates_among_distractors"]
        assert one["mates_among_distractors"]["concatenate"]["cmc_percent_1"] == 0
        assert one["analysis"]["cmc"]["num_distractors"] == one["num_images"]


def test_two_models_are_set_side_by_side_with_what_they_give_alone(
    run_test, tiny_faces, weights, other_weights, tmp_path
):
    flags = ("--benchmarks", "fgnet", "calfw", "--analysis")
    outcome, _ = run_test(tiny_faces, "--weights", weights, other_weights, *flags)
    assert outcome.status == 0, outcome.err
    both = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [model["name"] for model in both["models"]] == ["iefp.pth", "other.pth"]
    alone = run_test(tiny_faces, "--weights", other_weights, *flags)[1]
    assert all(both["models"][1][key] == alone[key] for key in ("results", "sha256"))
    compared = {one["setting"]: one for one in both["comparisons"]}
    assert compared["fgnet"]["a"] == "other.pth" and compared["fgnet"]["b"] == "iefp.pth"
    of_list = [model["results"]["calfw"]["verification"]["concatenate"] for model in both["models"]]
    difference = of_list[1]["pooled_auc_percent"] - of_list[0]["pooled_auc_percent"]
    assert compared["calfw"]["pooled_auc_difference_percentage_points"] == pytest.approx(difference)
    rank1 = [model["results"]["fgnet"]["analysis"]["rank1"]["rank1_percent"] for model in both["models"]]
    assert compared["fgnet"]["rank1_difference_percentage_points"] == pytest.approx(rank1[1] - rank1[0])
    assert "| other.pth less iefp.pth |" in outcome.out
    outcome, _ = run_test(tiny_faces, "--weights", weights, weights)
    assert outcome.status == 2 and "given twice" in outcome.err


def test_embeddings_of_another_program_get_the_figures_of_the_model_they_come_from(
    run_main, tiny_faces, results, by_hand, tmp_path
):
    """Written by a plain loop over the pictures, scored without a model: the same ranks. A missing one is named."""
    paths, embeddings = by_hand
    names = [path.relative_to(tiny_faces / FOLDERS[0]).as_posix() for path in paths]
    write_embeddings(tmp_path / "mine.npz", names, embeddings)
    flags = ("--face-dataset", tiny_faces, "--benchmarks", "fgnet", "--output", tmp_path / "out", "--device", "cpu",
             "--no-pictures", "--embeddings")  # fmt: skip
    outcome = run_main("test", *flags, tmp_path / "mine.npz")
    assert outcome.status == 0, outcome.err
    (model,) = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    of_file = model["results"]["fgnet"]
    for protocol in ("leave_one_out", "mates_against_rest"):
        for join in ("concatenate", "add"):
            assert of_file[protocol][join] == pytest.approx(results["fgnet"][protocol]["concatenate"])
        assert "grey_pixels" not in of_file[protocol]
    assert "age" not in of_file and "age_in_age" not in of_file["analysis"]["leaks"]
    write_embeddings(tmp_path / "less.npz", names[1:], embeddings[1:])
    outcome = run_main("test", *flags, tmp_path / "less.npz")
    assert outcome.status == 2 and "no embedding for 1 of" in outcome.err


def test_a_second_test_takes_what_the_first_one_kept_and_notices_damage_and_a_changed_picture(run_test, faces):
    first, again = (run_test(faces, "--benchmarks", "fgnet") for _ in range(2))
    assert again[1]["results"] == first[1]["results"]
    kept = sorted((faces / ".iefp_cache").iterdir())
    assert [path.name.split("_")[0] for path in kept] == ["embeddings", "grey"]
    assert "FG-NET: " in first[0].err + first[0].out and "FG-NET: " not in again[0].err + again[0].out
    rewrite(kept[0], lambda content: content[:2000])
    damaged = run_test(faces, "--benchmarks", "fgnet")
    assert damaged[0].status == 0 and "computed anew" in damaged[0].out
    assert damaged[1]["results"] == first[1]["results"] and kept[0].stat().st_size > 2000
    pictures = sorted((faces / FOLDERS[0]).glob("*/*.JPG"))
    shutil.copy(pictures[-1], pictures[0])
    assert run_test(faces, "--benchmarks", "fgnet")[1]["results"] != first[1]["results"]
    assert len(list((faces / ".iefp_cache").iterdir())) == 4


def test_morph2_at_a_number_of_subjects_without_folders_is_drawn_from_the_largest(run_test, tiny_faces):
    outcome, report = run_test(tiny_faces, "--benchmarks", "morph2", "--morph2-subjects", 4, 3000)
    assert outcome.status == 0 and "drawn by --seed 0 from probe_10000" in outcome.out
    assert report["results"]["morph2_4"]["num_probes"] == report["results"]["morph2_4"]["num_gallery"] == 4
    assert report["results"]["morph2_3000"]["num_probes"] == 3
    outcome, _ = run_test(tiny_faces, "--benchmarks", "morph2", "--morph2-subjects", 6)
    assert outcome.status == 2 and "have 5 subjects in common" in outcome.err


def test_a_folder_of_ones_own_is_tested_as_fgnet_is(run_test, tiny_faces, results):
    folder = tiny_faces / FOLDERS[0]
    flags = ("--benchmarks", "calfw", "--identity-folders", folder, "--analysis", "--names")
    outcome, report = run_test(tiny_faces, *flags, "fgnet")
    assert outcome.status == 0, outcome.err
    own = report["results"][folder.name]
    assert own == results["fgnet"] | {"title": folder.name, "benchmark": None}
    outcome, report = run_test(tiny_faces, *flags, "none")
    assert outcome.status == 0 and "age_gap" not in report["results"][folder.name]["analysis"]
