"""test.py on a tiny set: what it reports, that it agrees with the protocols done by hand, missing and bad data."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import ROOT
from torch.nn import functional as F

from data.pairs import read_pair_list
from data.verification_bins import write_verification_bin
from evaluation.embeddings.feature_files import write_embeddings
from evaluation.protocols import mates_against_rest
from models.iefp import IEFP
from models.weights import iefp_file_tensors, load_for_embedding

BENCHMARK_FOLDERS = ("ID_processed_FGNET", "ID_processed_morph2_2", "CACD_VS", "CALFW")


def only_model(path: Path) -> dict:
    """What results.json says of the one model that was tested."""
    (model,) = json.loads(path.read_text())["models"]
    return model


@pytest.fixture
def faces(tiny_faces, tmp_path) -> Path:
    """A copy of the benchmarks, to be damaged."""
    for folder in BENCHMARK_FOLDERS:
        shutil.copytree(tiny_faces / folder, tmp_path / "faces" / folder)
    return tmp_path / "faces"


@pytest.fixture
def run_test(run_main, weights, tmp_path):
    def run(faces: Path, *flags: object):
        outcome = run_main("test", "--weights", weights, "--face-dataset", faces, "--output", tmp_path / "results",
                           "--workers", 0, "--device", "cpu", *flags)  # fmt: skip
        path = tmp_path / "results" / "results.json"
        return outcome, only_model(path) if path.exists() else None

    return run


def test_test_sh_runs_all_four_benchmarks_and_says_so(tiny_faces, weights, tmp_path):
    command = [ROOT / "test.sh", "--weights", weights, "--face-dataset", tiny_faces, "--output", tmp_path,
               "--workers", "0", "--device", "cpu"]  # fmt: skip
    environment = os.environ | {"PYTHON": sys.executable}
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    results = only_model(tmp_path / "results.json")["results"]
    assert set(results) == {"fgnet", "morph2_3000", "morph2_10000", "cacd_vs", "calfw"}
    for title in ("FG-NET", "MORPH2 3,000", "MORPH2 10,000", "CACD-VS", "CALFW"):
        assert f"| {title} " in ended.stdout
    assert (tmp_path / "results.md").read_text().strip() in ended.stdout


def embed_by_hand(model: IEFP, path: Path) -> np.ndarray:
    """Both views one after the other, concatenated: the published way, picture by picture."""
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float()
    image = (pixels / 255 - 0.5) / 0.5
    with torch.no_grad():
        views = [F.normalize(model.identity_features(view.unsqueeze(0)))[0] for view in (image, image.flip(-1))]
    return F.normalize(torch.cat(views), dim=0).numpy()


def test_leave_one_out_is_what_a_plain_loop_over_the_pictures_gives(run_test, tiny_faces, weights):
    outcome, report = run_test(tiny_faces, "--benchmarks", "fgnet")
    assert outcome.status == 0
    model, _ = load_for_embedding(weights)
    paths = sorted((tiny_faces / "ID_processed_FGNET").glob("*/*.JPG"))
    embeddings = [embed_by_hand(model, path) for path in paths]
    hits = 0
    for probe, path in enumerate(paths):
        others = [other for other in range(len(paths)) if other != probe]
        nearest = max(others, key=lambda other: float(embeddings[probe] @ embeddings[other]))
        hits += paths[nearest].parent == path.parent
    measured = report["results"]["fgnet"]["leave_one_out"]["concatenate"]["rank1_percent"]
    assert measured == pytest.approx(100 * hits / len(paths))


def test_a_model_that_knows_people_by_pixels_gets_every_protocol_right(run_test, tiny_faces, faces):
    """Pictures of one person are made identical: whatever the weights, every figure has to be perfect."""
    for folder in ("ID_processed_FGNET", "ID_processed_morph2_2"):
        first: dict[str, Path] = {}
        for path in sorted((faces / folder).rglob("*.JPG")):
            if first.setdefault(path.parent.name, path) != path:
                shutil.copy(first[path.parent.name], path)
    for images, pair_list in (("CACD_VS/processed_CACDVS_2", "CACD_VS/txt/CACD_VS_pairs_labels.txt"),
                              ("CALFW/processed_CALFW_2", "CALFW/txts/CALFW_img_pairs_labels.txt")):  # fmt: skip
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
        assert results["cacd_vs"]["verification"][join]["pooled_auc_percent"] == 100
        assert results["calfw"]["verification"][join]["pooled_auc_percent"] == 100


def test_baselines_stand_beside_identification_results(run_test, tiny_faces):
    _, report = run_test(tiny_faces, "--benchmarks", "fgnet", "morph2")
    for result in (report["results"]["fgnet"]["leave_one_out"], report["results"]["morph2_3000"]["probe_gallery"]):
        assert set(result) == {"concatenate", "add", "grey_pixels", "chance"}
    assert report["results"]["morph2_3000"]["probe_gallery"]["chance"]["rank1_percent"] == pytest.approx(100 / 3)


def test_the_batch_size_does_not_change_the_figures(run_test, tiny_faces):
    reports = [
        run_test(tiny_faces, "--batch-size", size, "--no-analysis", "--no-keep-embeddings")[1]["results"]
        for size in (1, 7)
    ]
    assert reports[0] == reports[1]


# ----------------------------------------------------------------------------------------- missing and bad data


def test_a_missing_benchmark_is_named_the_others_run_and_the_status_says_so(run_test, faces):
    shutil.rmtree(faces / "CALFW")
    outcome, report = run_test(faces)
    assert outcome.status == 2
    assert set(report["results"]) == {"fgnet", "morph2_3000", "morph2_10000", "cacd_vs"}
    for words in ("CALFW", str(faces / "CALFW" / "processed_CALFW_2"), "drive.google.com", "prepare.py synthetic"):
        assert words in outcome.err and words in report["did_not_run"]["calfw"] + " CALFW"
    assert sum("did not run" in line for line in outcome.err.splitlines()) == 1, outcome.err
    assert "Traceback" not in outcome.err


def test_one_missing_folder_of_morph2_is_named(run_test, faces):
    shutil.rmtree(faces / "ID_processed_morph2_2" / "gallery_10000")
    outcome, report = run_test(faces, "--benchmarks", "morph2")
    assert outcome.status == 2 and "gallery_10000" in outcome.err
    assert "morph2_3000" in report["results"] and "morph2_10000" not in report["results"]


def test_a_probe_whose_subject_the_gallery_lacks_is_named(run_test, faces):
    gallery = faces / "ID_processed_morph2_2" / "gallery_3000"
    lost = sorted(gallery.iterdir())[0]
    shutil.rmtree(lost)
    outcome, _ = run_test(faces, "--benchmarks", "morph2")
    assert outcome.status == 2 and lost.name in outcome.err


def test_pair_lists_are_found_in_both_published_places(run_test, faces):
    (faces / "CALFW/txts/CALFW_img_pairs_labels.txt").rename(faces / "CALFW/CALFW_img_pairs_labels.txt")
    assert run_test(faces, "--benchmarks", "calfw")[0].status == 0


def test_a_malformed_list_line_is_named_with_its_number(run_test, faces):
    path = faces / "CALFW/txts/CALFW_img_pairs_labels.txt"
    lines = path.read_text().splitlines()
    lines[4] = lines[4].rsplit(" ", 1)[0] + " maybe"
    path.write_text("\n".join(lines))
    outcome, _ = run_test(faces, "--benchmarks", "calfw")
    assert outcome.status == 2 and str(path) in outcome.err and "5" in outcome.err and "maybe" in outcome.err


def test_a_missing_image_is_an_error_unless_allowed_and_then_counted(run_test, faces):
    lost = sorted((faces / "CACD_VS/processed_CACDVS_2").iterdir())[3]
    lost.unlink()
    outcome, _ = run_test(faces, "--benchmarks", "cacd_vs")
    assert outcome.status == 2 and lost.name in outcome.err and "--allow-missing" in outcome.err
    outcome, report = run_test(faces, "--benchmarks", "cacd_vs", "--allow-missing")
    assert outcome.status == 0 and report["results"]["cacd_vs"]["num_pairs_dropped"] == 1
    assert "1 pairs left out" in outcome.out


def test_a_truncated_picture_is_named(run_test, faces):
    picture = sorted((faces / "ID_processed_FGNET").glob("*/*.JPG"))[0]
    picture.write_bytes(picture.read_bytes()[:600])
    outcome, _ = run_test(faces, "--benchmarks", "fgnet")
    assert outcome.status == 2 and str(picture) in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--weights", "nowhere.pth"], "nowhere.pth does not exist"),
        (["--weights", "pretrained_IEFP_models/ms1mv3_iresnet50_IEFP.pth"], "drive.google.com"),
        (["--weights", __file__], "Accepted are"),
        (["--batch-size", "0"], "--batch-size 0 is out of range"),
        (["--device", "cuda:99"], "--device"),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_status_2(run_test, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)  # the published files may well lie in the project
    outcome, report = run_test(tmp_path, *flags)
    assert outcome.status == 2 and words in outcome.err and report is None
    assert len(outcome.err.strip().splitlines()) == 1 and "Traceback" not in outcome.err


def test_a_bin_of_calfws_pairs_gives_calfws_figures_and_its_sha256(run_main, tiny_faces, weights, tmp_path):
    root = tmp_path / "face_dataset"
    shutil.copytree(tiny_faces / "CALFW", root / "CALFW")
    folder = root / "CALFW" / "processed_CALFW_2"
    pairs = read_pair_list(root / "CALFW" / "txts" / "CALFW_img_pairs_labels.txt", folder)
    written = write_verification_bin(pairs, tmp_path / "mine.bin")
    outcome = run_main(
        "test",
        "--weights",
        weights,
        "--face-dataset",
        root,
        "--benchmarks",
        "calfw",
        "--bins",
        tmp_path / "mine.bin",
        "--output",
        tmp_path / "out",
        "--workers",
        0,
        "--device",
        "cpu",
    )
    assert outcome.status == 0 and written.sha256 in outcome.out
    results = only_model(tmp_path / "out" / "results.json")["results"]
    of_bin, of_list = results["mine.bin"], results["calfw"]
    assert of_bin["sha256"] == written.sha256
    assert {key: of_bin["verification"][key] for key in of_list["verification"]} == of_list["verification"]


# ------------------------------------------------------------------------------------------ beyond the published


def test_beyond_the_published_figures_each_benchmark_has_its_analysis(run_main, tiny_faces, weights, tmp_path):
    flags = ("--weights", weights, "--face-dataset", tiny_faces, "--workers", 0, "--device", "cpu")
    assert run_main("test", *flags, "--output", tmp_path / "out").status == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["schema"] == 3
    report = only_model(tmp_path / "out" / "results.json")
    of = {name: result["analysis"] for name, result in report["results"].items()}
    assert {"verification", "intervals", "cmc", "age_gap", "leaks", "errors"} <= of["fgnet"].keys()
    assert {"rank1", "errors", "age_gap", "younger_age"} <= of["morph2_3000"].keys()
    club = of["fgnet"]["leaks"]["club"]
    assert np.isfinite([club["club_nats"], club["shuffled_club_nats"]]).all()
    assert of["morph2_3000"]["cmc"]["cmc_percent"][0] == pytest.approx(
        report["results"]["morph2_3000"]["probe_gallery"]["concatenate"]["rank1_percent"]
    )
    for name in ("cacd_vs", "calfw"):  # exact figures and the pooled ones of the published protocol are the same
        exact, pooled = of[name]["verification"]["figures"], report["results"][name]["verification"]["concatenate"]
        assert exact["pooled_auc_percent"] == pytest.approx(pooled["pooled_auc_percent"])
        assert exact["tar_at_far_1e-1_percent"] is not None and exact["tar_at_far_1e-3_percent"] is None
        assert "needs 1,000 impostor pairs" in exact["tar_at_far_1e-3_reason"]
        scores = [pair["cosine"] for pair in of[name]["errors"]["false_matches"]]
        assert scores == sorted(scores, reverse=True)
    assert run_main("test", *flags, "--output", tmp_path / "less", "--no-analysis").status == 0
    less = only_model(tmp_path / "less" / "results.json")["results"]
    assert all("analysis" not in result for result in less.values())


def test_distractors_among_fgnets_people_can_only_lower_ranks(run_main, tiny_faces, weights, tmp_path):
    distractors = np.random.default_rng(0).normal(size=(50, 1024)).astype(np.float32)
    np.save(tmp_path / "distractors.npy", distractors)
    flags = ("--weights", weights, "--face-dataset", tiny_faces, "--workers", 0, "--device", "cpu",
             "--benchmarks", "fgnet")  # fmt: skip
    cmc = {}
    for name, more in (("alone", ()), ("among", ("--distractors", tmp_path / "distractors.npy"))):
        assert run_main("test", *flags, "--output", tmp_path / name, *more).status == 0
        cmc[name] = only_model(tmp_path / name / "results.json")["results"]["fgnet"]["analysis"]["cmc"]
    assert (cmc["alone"]["num_distractors"], cmc["among"]["num_distractors"]) == (0, 50)
    alone = cmc["alone"]["cmc_percent"]
    assert all(a >= b for a, b in zip(alone, cmc["among"]["cmc_percent"], strict=False))
    among = only_model(tmp_path / "among" / "results.json")["results"]["fgnet"]["mates_among_distractors"]
    model, _ = load_for_embedding(weights)
    paths = sorted((tiny_faces / "ID_processed_FGNET").glob("*/*.JPG"))
    embeddings, people = np.stack([embed_by_hand(model, path) for path in paths]), [path.parent.name for path in paths]
    assert among["concatenate"] == pytest.approx(mates_against_rest(embeddings, np.array(people), distractors))
    outcome = run_main("test", *flags, "--output", tmp_path / "x", "--distractors", tmp_path / "nowhere.npy")
    assert outcome.status == 2 and "nowhere.npy" in outcome.err


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "in memory"])
def test_pictures_of_distractors_are_embedded_folder_and_records_alike(run_test, tiny_faces, run_main, tmp_path, kept):
    """The distractors are FG-NET's own pictures: each probe then finds its double, and a mate is second at best."""
    folder, records = tiny_faces / "ID_processed_FGNET", tmp_path / "packed"
    assert run_main("prepare", "pack", "--data", folder, "--output", records / "train.rec").status == 0
    results = []
    flags = ("--benchmarks", "fgnet", *(() if kept else ("--no-keep-embeddings",)))
    for distractors in (folder, records, records / "train.rec") if kept else (folder,):
        outcome, report = run_test(tiny_faces, *flags, "--distractors", distractors)
        assert outcome.status == 0, outcome.err
        results.append(report["results"]["fgnet"])
    for one in results:
        assert one["mates_among_distractors"] == results[0]["mates_among_distractors"]
        assert one["mates_among_distractors"]["concatenate"]["cmc_percent_1"] == 0
        assert one["analysis"]["cmc"]["num_distractors"] == one["num_images"]


# -------------------------------------------------------------------------------- several models, foreign embeddings


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory) -> Path:
    torch.manual_seed(8)
    path = tmp_path_factory.mktemp("other") / "other.pth"
    torch.save(iefp_file_tensors(IEFP("iresnet18_quarter", 1, 6)), path)
    return path


def test_two_models_are_set_side_by_side_with_what_they_give_alone(
    run_main, tiny_faces, weights, other_weights, tmp_path
):
    flags = ("--face-dataset", tiny_faces, "--workers", 0, "--device", "cpu", "--benchmarks", "fgnet", "calfw")
    outcome = run_main("test", "--weights", weights, other_weights, *flags, "--output", tmp_path / "both")
    assert outcome.status == 0, outcome.err
    both = json.loads((tmp_path / "both" / "results.json").read_text())
    assert [model["name"] for model in both["models"]] == ["iefp.pth", "other.pth"]
    for model, path in zip(both["models"], (weights, other_weights), strict=True):
        assert run_main("test", "--weights", path, *flags, "--output", tmp_path / "one").status == 0
        alone = only_model(tmp_path / "one" / "results.json")
        assert model["results"] == alone["results"] and model["sha256"] == alone["sha256"]
    compared = {one["setting"]: one for one in both["comparisons"]}
    assert compared["fgnet"]["a"] == "other.pth" and compared["fgnet"]["b"] == "iefp.pth"
    rank1 = [model["results"]["fgnet"]["analysis"]["rank1"]["rank1_percent"] for model in both["models"]]
    assert compared["fgnet"]["rank1_difference_percentage_points"] == pytest.approx(rank1[1] - rank1[0])
    auc = [model["results"]["calfw"]["verification"]["concatenate"]["pooled_auc_percent"] for model in both["models"]]
    assert compared["calfw"]["pooled_auc_difference_percentage_points"] == pytest.approx(auc[1] - auc[0])
    assert "| other.pth less iefp.pth |" in outcome.out


def test_the_same_file_twice_is_refused(run_test, tiny_faces, weights):
    outcome, _ = run_test(tiny_faces, "--weights", weights, weights)
    assert outcome.status == 2 and "given twice" in outcome.err


def test_embeddings_of_another_program_get_the_figures_of_the_model_they_come_from(
    run_main, run_test, tiny_faces, weights, tmp_path
):
    """Written by a plain loop over the pictures, scored without a model: the same ranks."""
    model, _ = load_for_embedding(weights)
    root = tiny_faces / "ID_processed_FGNET"
    paths = sorted(root.glob("*/*.JPG"))
    names = [path.relative_to(root).as_posix() for path in paths]
    write_embeddings(tmp_path / "mine.npz", names, np.stack([embed_by_hand(model, path) for path in paths]))
    flags = ("--face-dataset", tiny_faces, "--benchmarks", "fgnet", "--output", tmp_path / "out", "--device", "cpu")
    outcome = run_main("test", "--embeddings", tmp_path / "mine.npz", *flags)
    assert outcome.status == 0, outcome.err
    of_file = only_model(tmp_path / "out" / "results.json")["results"]["fgnet"]
    of_model = run_test(tiny_faces, "--benchmarks", "fgnet")[1]["results"]["fgnet"]
    for protocol in ("leave_one_out", "mates_against_rest"):
        for join in ("concatenate", "add"):
            assert of_file[protocol][join] == pytest.approx(of_model[protocol]["concatenate"])
        assert "grey_pixels" not in of_file[protocol]
    assert "age" not in of_file and "age_in_age" not in of_file["analysis"]["leaks"]


def test_embeddings_without_a_picture_of_the_benchmark_are_named(run_main, tiny_faces, tmp_path):
    names = sorted(path.name for path in (tiny_faces / "ID_processed_FGNET").glob("*/*.JPG"))[1:]
    write_embeddings(tmp_path / "mine.npz", names, np.random.default_rng(0).normal(size=(len(names), 8)))
    flags = ("--face-dataset", tiny_faces, "--benchmarks", "fgnet", "--output", tmp_path / "out", "--device", "cpu")
    outcome = run_main("test", "--embeddings", tmp_path / "mine.npz", *flags)
    assert outcome.status == 2 and "no embedding for 1 of" in outcome.err


# -------------------------------------------------------------------------------------------- cached embeddings


def test_a_second_test_takes_what_the_first_one_kept_and_notices_a_changed_picture(run_test, faces):
    first = run_test(faces, "--benchmarks", "fgnet")
    again = run_test(faces, "--benchmarks", "fgnet")
    assert again[1]["results"] == first[1]["results"]
    kept = sorted((faces / ".iefp_cache").iterdir())
    assert [path.name.split("_")[0] for path in kept] == ["embeddings", "grey"]
    assert "FG-NET: " in first[0].err + first[0].out and "FG-NET: " not in again[0].err + again[0].out
    pictures = sorted((faces / "ID_processed_FGNET").glob("*/*.JPG"))
    shutil.copy(pictures[-1], pictures[0])
    changed = run_test(faces, "--benchmarks", "fgnet")
    assert changed[1]["results"] != first[1]["results"]
    assert len(list((faces / ".iefp_cache").iterdir())) == 4


def test_a_damaged_file_of_cached_embeddings_is_reported_and_made_anew(run_test, faces):
    first = run_test(faces, "--benchmarks", "fgnet")
    path = next((faces / ".iefp_cache").glob("embeddings_*"))
    path.write_bytes(path.read_bytes()[:2000])
    again = run_test(faces, "--benchmarks", "fgnet")
    assert again[0].status == 0 and "computed anew" in again[0].out
    assert again[1]["results"] == first[1]["results"] and path.stat().st_size > 2000


# ------------------------------------------------------------------------------------ sets and sizes of one's own


def test_morph2_at_a_number_of_subjects_without_folders_is_drawn_from_the_largest(run_test, tiny_faces):
    outcome, report = run_test(tiny_faces, "--benchmarks", "morph2", "--morph2-subjects", 4, 3000)
    assert outcome.status == 0 and "drawn by --seed 0 from probe_10000" in outcome.out
    assert report["results"]["morph2_4"]["num_probes"] == report["results"]["morph2_4"]["num_gallery"] == 4
    assert report["results"]["morph2_3000"]["num_probes"] == 3
    outcome, _ = run_test(tiny_faces, "--benchmarks", "morph2", "--morph2-subjects", 6)
    assert outcome.status == 2 and "have 5 subjects in common" in outcome.err


def test_a_folder_of_ones_own_is_tested_as_fgnet_is(run_test, tiny_faces):
    folder = tiny_faces / "ID_processed_FGNET"
    flags = ("--benchmarks", "fgnet", "--identity-folders", folder, "--names", "fgnet")
    outcome, report = run_test(tiny_faces, *flags)
    assert outcome.status == 0, outcome.err
    fgnet, own = (dict(report["results"][name]) for name in ("fgnet", folder.name))
    assert (fgnet.pop("title"), own.pop("title")) == ("FG-NET", folder.name)
    assert (fgnet.pop("benchmark"), own.pop("benchmark")) == ("fgnet", None) and fgnet == own
    outcome, report = run_test(tiny_faces, "--benchmarks", "fgnet", "--identity-folders", folder, "--names", "none")
    assert outcome.status == 0 and "age_gap" not in report["results"][folder.name]["analysis"]


# --------------------------------------------------------------------------------------------------- the report


def test_the_report_shows_pictures_unless_switched_off(run_test, tiny_faces, tmp_path):
    for flags, has_pictures in (((), True), (("--no-pictures",), False)):
        assert run_test(tiny_faces, "--benchmarks", "fgnet", "morph2", *flags)[0].status == 0
        page = (tmp_path / "results" / "report.html").read_text()
        assert ("data:image/jpeg;base64," in page) == has_pictures
        assert "probe_3000/" in page
