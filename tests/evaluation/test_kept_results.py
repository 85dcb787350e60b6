"""What is kept and taken again depends on all that it was computed from, and goes only when there is better."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from scripts import TINY, load_script

from data.faces import index_identity_folders
from evaluation import age_labelling
from evaluation.calibration import write_calibrations
from evaluation.embeddings.gallery_files import write_gallery
from evaluation.embeddings.photos import made_by as made_by_model
from evaluation.models_under_test import WeightsModel
from models.iefp import IEFP
from models.weights import age_file_tensors, iefp_file_tensors, load_estimator, model_fingerprint
from utils.cli import parse_config
from utils.distributed import DistInfo

CPU = torch.device("cpu")
OTHER_UNIT = {"identity_branch": {"purification": "x_plus_linear_relu_bn"},
              "age_branch": {"purification": "x_plus_linear_relu_bn"}}  # fmt: skip


@pytest.fixture
def own_weights(weights, tmp_path):
    """A copy of the weights, to have a JSON file beside it."""
    return shutil.copy(weights, tmp_path / "own.pth")


def choose_another_unit(weights) -> None:
    """The same keys and shapes, and another network."""
    weights.with_suffix(".json").write_text(json.dumps(OTHER_UNIT))


def test_kept_embeddings_are_not_those_of_the_same_file_with_another_unit(own_weights, tiny_faces, tmp_path):
    """3a: with another purification unit beside the same weight file nothing kept is taken."""
    script = load_script("test")
    faces = index_identity_folders(tiny_faces / "ID_processed_FGNET", None)

    def embed(*flags):
        flags = ["--workers", "0", *(flags or ("--cache-folder", str(tmp_path / "cache")))]
        config = parse_config(script.TestConfig, ["--weights", str(own_weights), *flags])
        model = WeightsModel(own_weights, "own", script.extraction_of(config), DistInfo(0, 1, CPU))
        return model.embed(faces, "FG-NET").original

    state = torch.load(own_weights, weights_only=True)
    for key in [key for key in state if "spu" in key]:
        state[key] = state[key] * 10  # a unit that has not been trained changes little
    torch.save(state, own_weights)
    first = embed()
    assert np.array_equal(embed(), first)
    choose_another_unit(own_weights)
    changed = embed()
    assert np.array_equal(changed, embed("--no-keep-embeddings"))
    assert np.abs(changed - first).max() > 0.01
    own_weights.with_suffix(".json").unlink()
    assert np.array_equal(embed(), first)
    assert len(list((tmp_path / "cache").glob("embeddings_*"))) == 2


def test_a_fingerprint_is_of_file_units_and_pixels(monkeypatch):
    """3a: a model is known by all that its output depends on."""
    other = "x_plus_linear_relu_bn"
    units = ((1, 1), (other, 1), (1, other), (2, 1))
    models = [IEFP(TINY, unit, None, age_purification=of_age) for unit, of_age in units]
    known = {model_fingerprint(sha256, model) for sha256 in ("aa", "bb") for model in models}
    assert len(known) == 8
    monkeypatch.setattr("models.weights.PREPROCESSING", 99)
    assert model_fingerprint("aa", models[0]) not in known


def calibration_for(model, folder, **changed):
    figures = {f"{key}_at_far_{rate}{end}": value for rate in ("1e-1", "1e-2", "1e-3", "1e-4")
               for key, end, value in (("threshold", "", 0.5), ("tar", "_reason", None), ("tar", "_percent", 90.0),
                                       ("impostors_allowed", "", 9))}  # fmt: skip
    figures |= {"num_genuine": 100, "num_impostor": 100_000}
    result = {"title": "CALFW", "analysis": {"verification": {"figures": figures}}}
    of_model = {"name": "own", "weights": str(model.path), "sha256": model.sha256,
                "model_fingerprint": model.fingerprint, "results": {"calfw": result}}  # fmt: skip
    return write_calibrations(folder, [of_model], "concatenate")


def test_a_calibration_is_of_a_network_and_not_of_a_file(own_weights, run_main, tiny_faces, tmp_path):
    """3a: the thresholds of the same weights with another unit are refused where given, passed over where found."""
    path = calibration_for(load_script("embed").load(own_weights, "cpu"), tmp_path)
    pictures = sorted((tiny_faces / "ID_processed_FGNET").glob("*/*.JPG"))[:2]
    flags = (*pictures, "--weights", own_weights, "--device", "cpu", "--workers", 0)
    assert "at FAR 1e-3" in run_main("embed", *flags).out
    choose_another_unit(own_weights)
    ended = run_main("embed", *flags, "--calibration", path)
    assert ended.status == 2 and "another purification unit" in ended.err and ended.err.count("\n") == 1
    ended = run_main("embed", *flags)
    assert ended.status == 0 and "is not about" in ended.err and "FAR" not in ended.out


def test_what_an_earlier_version_wrote_says_how_to_make_it_anew(own_weights, run_main, tiny_faces, tmp_path):
    """3a: a calibration or a gallery that knows its model by the SHA-256 alone is no longer believed.

    A gallery is of a network and not of a file: with another unit it is not searched.
    """
    model = load_script("embed").load(own_weights, "cpu")
    path = calibration_for(model, tmp_path / "results")
    content = json.loads(path.read_text())
    del content["models"][0]["model_fingerprint"]
    path.write_text(json.dumps(content))
    made_by = made_by_model(model)
    old = {key: value for key, value in made_by.items() if key != "model_fingerprint"}
    for name, maker in (("new", made_by), ("old", old)):
        write_gallery(tmp_path / f"{name}.npz", ("a",), np.ones((1, 1024), np.float32), None, maker)
    pictures = sorted((tiny_faces / "ID_processed_FGNET").glob("*/*.JPG"))[:2]
    search = ("embed", *pictures, "--weights", own_weights, "--device", "cpu", "--workers", 0)
    assert run_main(*search, "--gallery", tmp_path / "new.npz").status == 0
    for flags, words in ((("--calibration", path), "earlier version.*run test.py"),
                         (("--gallery", tmp_path / "old.npz"), "earlier version.*embed its pictures")):  # fmt: skip
        ended = run_main(*search, *flags)
        assert ended.status == 2 and re.search(words, ended.err) and ended.err.count("\n") == 1
    choose_another_unit(own_weights)
    ended = run_main(*search, "--gallery", tmp_path / "new.npz")
    assert ended.status == 2 and "another purification unit" in ended.err and ended.err.count("\n") == 1


def test_half_made_ages_are_of_the_network_that_made_them(run_main, tiny_faces, tmp_path, monkeypatch):
    """3a: unfinished ages are not gone on with by another unit of the same file."""
    path = tmp_path / "age.pth"
    torch.save(age_file_tensors(IEFP(TINY, 1, None)), path)
    label, fingerprints = age_labelling.label_ages, []

    def stopped(*args, fingerprint, **how):
        fingerprints.append(fingerprint)
        label(*args, fingerprint=fingerprint, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(age_labelling, "label_ages", stopped)
    flags = ("prepare", "ages", "--data", tiny_faces / "ID_processed_FGNET", "--weights", path, "--output",
             tmp_path / "ages.csv", "--device", "cpu", "--workers", 0)  # fmt: skip
    assert run_main(*flags).status == 130
    assert "already: going on" in run_main(*flags).out
    choose_another_unit(path)
    assert "of other weights or other pictures" in run_main(*flags).out
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def trained(seen_by_club: int = 1) -> IEFP:
    torch.manual_seed(2)
    model = IEFP(TINY, 1, None)
    for _ in range(seen_by_club):
        model.clubmi(*torch.randn(2, 8, 512))
    return model


def has_estimator(path) -> bool:
    return load_estimator(IEFP(TINY, 1, None), path)


@pytest.mark.parametrize("method", ["iefp", "none", "grl", "dal", "orthogonal"])
def test_a_checkpoint_says_whether_its_club_was_trained(tmp_path, method):
    """3c: a checkpoint of another method gives no estimate, though a CLUB of an earlier run may stand in it."""
    content = {"config": {"stage": "identity", "disentangle": method}, "model": trained().state_dict()}
    torch.save(content, tmp_path / "step_00000001.pth")
    assert has_estimator(tmp_path / "step_00000001.pth") == (method == "iefp")


def test_a_club_that_saw_no_batch_gives_no_estimate(run_test, tiny_faces, tmp_path):
    """3c: weights of another method are recognised without the JSON file beside them, and test.py leaves CLUB out."""
    for batches in (1, 0):
        torch.save(iefp_file_tensors(trained(batches)), tmp_path / "alone.pth")
        assert has_estimator(tmp_path / "alone.pth") == (batches == 1)
    flags = ("--weights", tmp_path / "alone.pth", "--benchmarks", "fgnet", "--analysis", "--no-pictures")
    outcome, model = run_test(tiny_faces, *flags)
    assert outcome.status == 0
    leaks = model["results"]["fgnet"]["analysis"]["leaks"]
    assert "club" not in leaks and "identity_in_age" in leaks


def test_another_method_does_not_take_the_club_of_the_weights_that_it_starts_from(train_identity, weights, tmp_path):
    """3c: nothing trains it there, and test.py could not notice that it is of another model."""
    flags = ("--epochs", 1, "--disentangle", "grl", "--init-from", weights)
    assert train_identity(tmp_path / "run", *flags).status == 0
    alone = shutil.copy(tmp_path / "run" / "iefp.pth", tmp_path / "alone.pth")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step_*.pth")
    assert has_estimator(weights) and not has_estimator(alone) and not has_estimator(checkpoint)


def test_earlier_results_stay_where_nothing_ran(run_main, weights, tmp_path):
    """12: a typo in --face-dataset costs no results."""
    earlier = {name: f"earlier {name}" for name in ("results.json", "results.md", "report.html", "calibration.json")}
    (tmp_path / "out").mkdir()
    for name, text in earlier.items():
        (tmp_path / "out" / name).write_text(text)
    flags = ("--weights", weights, "--benchmarks", "fgnet", "calfw", "--output", tmp_path / "out", "--device", "cpu")
    ended = run_main("test", *flags, "--face-dataset", tmp_path / "tpyo")
    assert ended.status == 2 and ended.err.count("did not run") == 2
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == earlier
    assert "report to look at" not in ended.out and "written" not in ended.out.replace("nothing is written", "")
