"""test.py --age-folder: pictures with ages of people whom nobody names, from file names to the report."""

import json

import numpy as np

from evaluation.embeddings.feature_files import read_features
from evaluation.pairs.false_matches import false_matches_by_age
from evaluation.protocols import join_views


def write_pictures(folder, ages):
    """Files named as UTKFace's, which nothing decodes where embeddings are given; the last but one a copy, no age."""
    folder.mkdir()
    names = [f"{age}_{i % 2}_{i % 5}_2017{i:010d}.jpg.chip.jpg" for i, age in enumerate(ages)]
    for name in names:
        (folder / name).write_text(name)
    (folder / "7_0_0_2018.jpg").write_text(names[0])
    (folder / "face.jpg").write_text("no age")
    return names


def write_model(path, names, ages, strength):
    """Embeddings of as many people, in which children look alike."""
    rng = np.random.default_rng(3)
    child = np.maximum(0, 15 - ages)[:, None] * strength * rng.normal(size=16)
    views = [(rng.normal(size=(len(ages), 16)) + child).astype(np.float32) for _ in range(2)]
    np.savez(path, names=np.array([*names, "7_0_0_2018.jpg"]), embeddings=np.concatenate([views[0], views[0][:1]]),
             mirror=np.concatenate([views[1], views[1][:1]]))  # fmt: skip
    return path


def common_flags(tmp_path):
    return "--benchmarks", "--face-dataset", tmp_path, "--output", tmp_path / "out", "--device", "cpu"


def test_two_models_stand_side_by_side_in_table_results_and_report(run_main, tmp_path):
    ages = np.random.default_rng(0).integers(0, 90, 170)
    names, strengths = write_pictures(tmp_path / "UTK", ages), {"before": 0.4, "after": 0.0}
    models = [write_model(tmp_path / f"{name}.npz", names, ages, strength) for name, strength in strengths.items()]
    flags = ("--age-folder", tmp_path / "UTK", "--names", "utkface", *common_flags(tmp_path))
    ran = run_main("test", "--embeddings", *models, *flags)
    assert ran.status == 0, ran.err
    assert "1 without an age in the name, 1 exact duplicates; every pair counts as two people" in ran.out
    assert "| UTK         | before.npz |" in ran.out and "| UTK         | after.npz  |" in ran.out
    assert "| measure" not in ran.out  # no table of recognition
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    of_children = []
    for model, path in zip(report["models"], models, strict=True):
        result = model["results"]["UTK"]
        left_out = result["num_without_age_left_out"], result["num_duplicates_left_out"]
        assert (result["num_images"], *left_out) == (170, 1, 1)
        assert result["people"] == "unknown: every pair of pictures counts as two people"
        features = read_features(path)
        order = [list(features.names).index(name) for name in sorted(names)]
        joined = join_views(features.embeddings[order], features.mirror[order], "concatenate")
        expected = false_matches_by_age(joined, ages[order])[0]["at_fmr"]["1e-3"]
        found = result["analysis"]["false_matches_by_age"]["concatenate"]["at_fmr"]["1e-3"]
        assert found["num_false_matches_by_groups"] == expected["num_false_matches_by_groups"]
        of_children.append(found["bands"]["0-12"]["fmr"])
        assert result["analysis"]["errors"]["false_matches"][0]["name_a"] in names
        leaks = result["analysis"]["leaks"]["age_in_identity"]
        assert leaks["num_images"] == leaks["num_people"] == 170 and "nonlinear_age_r2" in leaks
    assert of_children[0] > 10 * of_children[1] and report["comparisons"] == []
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("Heat map: UTK: ") == 2 and "Who the people are is unknown" in page


def test_pictures_are_embedded_and_too_few_say_so(run_main, tiny_faces, weights, tmp_path):
    folder = tiny_faces / "ID_processed_FGNET"
    ran = run_main("test", "--age-folder", folder, "--names", "fgnet", "--weights", weights, "--workers", 0,
                   *common_flags(tmp_path))  # fmt: skip
    assert ran.status == 0, ran.err
    why = "FMR 1e-3 needs 10,000 impostor pairs or more, there are 105"
    assert f"left out: ID_processed_FGNET, false matches by age, iefp.pth: {why}" in ran.out
    (model,) = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    analysis = model["results"]["ID_processed_FGNET"]["analysis"]
    assert set(analysis["false_matches_by_age"]) == {"concatenate", "grey_pixels"}


def test_the_wrong_pattern_is_a_sentence_before_anything_is_embedded(run_main, weights, tmp_path):
    write_pictures(tmp_path / "UTK", np.arange(30))
    ran = run_main("test", "--age-folder", tmp_path / "UTK", "--weights", weights, *common_flags(tmp_path))
    assert ran.status == 2 and "hold ages 0-12 only as the pattern 'ms1mv3' reads them" in ran.err
    assert ran.err.count("\n") == 1 and not (tmp_path / "out").exists()
