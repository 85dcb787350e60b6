"""Validation in training: the figures of test.py, training untouched, the best checkpoint, one and two processes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from processes import run_program
from scripts import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train import read_log, same_weights, training_set

from data.benchmarks import open_complete_eval_set
from data.loaders import batches, evaluation_loader
from data.pairs import read_pair_list
from data.transforms import to_network_input
from data.verification_bins import write_verification_bin
from meta import UserError
from models.iefp import IEFP
from training.run_log import RunLog
from training.validation import Validation, figures_of, in_eval_mode
from utils.distributed import DistInfo

ALONE = DistInfo(0, 1, torch.device("cpu"))
ALL = ("fgnet", "morph2_3000", "cacd_vs", "calfw")


@pytest.fixture
def validated(train_identity, tiny_faces):
    """Trains with validation every two steps of the three that an epoch has."""

    def train(run_folder: Path, *flags: object, on: tuple[str, ...] = ("fgnet",), every: int = 2):
        return train_identity(run_folder, "--validate-every", every, "--validate-on", *on,
                              "--face-dataset", tiny_faces, *flags)  # fmt: skip

    return train


def events(run_folder: Path, kind: str) -> list[dict]:
    return [event for event in read_log(run_folder) if event["event"] == kind]


# ----------------------------------------------------------------------------------------------------- what it reports


def test_the_last_validation_has_the_figures_of_test_py_which_become_curves_and_pictures_for_tensorboard(
    validated, run_main, tiny_faces, tmp_path
):
    folder = tiny_faces / "CALFW"
    pairs = read_pair_list(folder / "txts" / "CALFW_img_pairs_labels.txt", folder / "processed_CALFW_2")
    write_verification_bin(pairs, tmp_path / "own.bin", reencode=True)
    outcome = validated(tmp_path / "run", "--epochs", 1, on=(*ALL, str(tmp_path / "own.bin")))
    assert outcome.status == 0, outcome.err
    first, last = events(tmp_path / "run", "validation")
    assert (first["step"], last["step"]) == (2, 3)
    flags = ("--weights", tmp_path / "run" / "iefp.pth", "--face-dataset", tiny_faces, "--workers", 0, "--device",
             "cpu", "--no-analysis", "--bins", tmp_path / "own.bin", "--output", tmp_path / "results")  # fmt: skip
    assert run_main("test", *flags).status == 0
    (model,) = json.loads((tmp_path / "results" / "results.json").read_text())["models"]
    for setting, result in model["results"].items():
        name = setting.removesuffix(".bin")
        for part in ("leave_one_out", "mates_against_rest", "probe_gallery", "verification"):
            for figure, value in result.get(part, {}).get("concatenate", {}).items():
                if f"{name}_{figure}" in last:
                    assert last.pop(f"{name}_{figure}") == pytest.approx(value, rel=1e-9), (name, figure)
    assert set(last) == {"event", "time", "step", "seconds"}
    assert "validation at step 3, fgnet: rank1_percent " in outcome.out
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    points = [(point.step, point.value) for point in board.Scalars("validation/fgnet_rank1_percent")]
    logged = [(event["step"], event["fgnet_rank1_percent"]) for event in events(tmp_path / "run", "validation")]
    assert np.allclose(points, logged) and [step for step, _ in points] == [2, 3]
    for name in ("fgnet", "morph2_3000", "calfw"):
        pictures = board.Images(f"validation/{name}")
        assert [picture.step for picture in pictures] == [2, 3]
        assert pictures[0].width > 400 and pictures[0].encoded_image_string[:4] == b"\x89PNG"


# ---------------------------------------------------------------------------------------------- what it leaves alone


def test_a_run_with_validation_trains_to_the_bit_as_one_without(plain_run, validated, tmp_path):
    assert validated(tmp_path / "run", "--epochs", 1, "--workers", 1, every=1, on=("calfw",)).status == 0
    assert same_weights(plain_run / "iefp.pth", tmp_path / "run" / "iefp.pth")
    losses = [[(event["face_recognition_loss"], event["mutual_information"]) for event in events(run, "train")]
              for run in (plain_run, tmp_path / "run")]  # fmt: skip
    assert losses[0] == losses[1]


def make_validation(faces: Path, *names: str) -> Validation:
    opened = {name: open_complete_eval_set(name, faces) for name in names}
    return Validation(opened, ALONE, lambda of: batches(evaluation_loader(of, 64)), to_network_input)


def legacy_state() -> list:
    """Of numpy's global generator, which some libraries draw from."""
    return np.random.get_state()[1].tolist()  # noqa: NPY002


def test_modes_are_put_back_nothing_random_is_drawn_and_no_gradient_is_kept(tiny_faces, tmp_path):
    model = IEFP(TINY, 1, 6).freeze_age_branch().train()
    model.clubmi.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state, drawn, of_numpy = dict(model.state_dict()), torch.get_rng_state(), legacy_state()
    before = {key: value.clone() for key, value in state.items()}
    asked = []
    model.backbone_id.register_forward_hook(lambda module, _, output: asked.append((module.training, output)))
    make_validation(tiny_faces, "fgnet").run(model, 1, RunLog(tmp_path, enabled=False))
    assert asked and not any(training or output.requires_grad for training, output in asked)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), drawn) and legacy_state() == of_numpy
    assert all(torch.equal(before[key], value) for key, value in state.items())


def test_modes_are_put_back_after_an_error():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3).eval())
    with pytest.raises(UserError), in_eval_mode(model):
        assert not model.training and not model[0].training
        raise UserError("stop")
    assert model.training and model[0].training and not model[1].training


def test_whatever_has_the_three_methods_can_be_asked(tiny_faces, tmp_path):
    """Not even a module: brightness of rows as features."""

    class Rows:
        def identity_features(self, images):
            return images.mean(dim=(1, 3)).repeat(1, 5)[:, :512]

        age_features = identity_features

        def age_logits(self, features):
            return features[:, :8]

    validation = make_validation(tiny_faces, "fgnet", "calfw")
    for step in (1, 2):
        validation.run(Rows(), step, RunLog(tmp_path, enabled=False))
    figures = validation.figures_at(2)
    assert figures.keys() == figures_of(validation.benchmarks).keys() and validation.figures_at(1) == {}


# ----------------------------------------------------------------------------------------------------------- the best


def test_the_checkpoint_of_the_best_figure_is_kept_and_its_weights_are_written(validated, tmp_path, monkeypatch):
    """Figures are made up: the second of three is best, at a step at which no checkpoint would have been made."""
    made_up = iter([10.0, 90.0, 50.0])
    validation = Validation
    folder = tmp_path / "run"
    monkeypatch.setattr(validation, "_score", lambda self, *args: ({"fgnet_rank1_percent": next(made_up)}, []))
    monkeypatch.setattr(validation, "_log_curves", lambda self, *args: None)
    outcome = validated(folder, "--epochs", 2, "--best-metric", "fgnet_rank1_percent", "--keep-checkpoints", 1)
    assert outcome.status == 0 and "best by fgnet_rank1_percent, 90 at step 4" in outcome.out, outcome.err
    best = torch.load(folder / "checkpoints" / "best.pth", weights_only=True)
    assert (best["step"], best["best"]) == (4, 90.0)
    written = torch.load(folder / "iefp_best.pth", weights_only=True)
    last = torch.load(folder / "iefp.pth", weights_only=True)
    assert written.keys() == last.keys() and not torch.equal(written["margin_fc.weight"], last["margin_fc.weight"])
    assert all(torch.equal(value, best["model"][key]) for key, value in written.items())
    assert (folder / "iefp_best.json").read_text() == (folder / "iefp.json").read_text()
    (end,) = events(folder, "end")
    assert (end["best_step"], end["fgnet_rank1_percent"]) == (4, 90.0)


def test_where_a_moving_average_is_kept_it_is_what_is_validated_and_what_was_best_is_written(
    validated, run_main, tiny_faces, tmp_path
):
    """The figures are those that test.py gives of the average; the best one is that of its own checkpoint."""
    folder, metric = tmp_path / "run", "fgnet_cmc_percent_10"
    outcome = validated(folder, "--epochs", 2, "--ema-decay", 0.5, "--best-metric", metric)
    assert outcome.status == 0, outcome.err
    ema, best, last = (torch.load(folder / f"iefp{name}.pth", weights_only=True) for name in ("_ema", "_best", ""))
    kept = torch.load(folder / "checkpoints" / "best.pth", weights_only=True)
    averaged = kept["averaged"]["modules"]["backbone_id"]
    assert all(torch.equal(best[f"backbone_id.{key}"], value) for key, value in averaged.items())
    assert not torch.equal(ema["backbone_id.features.weight"], last["backbone_id.features.weight"])
    common = ("--face-dataset", tiny_faces, "--benchmarks", "fgnet", "--device", "cpu", "--workers", 0, "--no-analysis")
    for name, reply in (("_ema", events(folder, "validation")[-1]), ("_best", events(folder, "end")[0])):
        weights = folder / f"iefp{name}.pth"
        assert run_main("test", "--weights", weights, "--output", tmp_path / name, *common).status == 0
        results = json.loads((tmp_path / name / "results.json").read_text())["models"][0]["results"]["fgnet"]
        assert results["mates_against_rest"]["concatenate"]["cmc_percent_10"] == pytest.approx(reply[metric], rel=1e-9)


def test_a_run_that_goes_on_knows_its_best_and_asks_again_where_it_was_stopped(validated, tmp_path, monkeypatch):
    folder, flags = tmp_path / "run", ("--epochs", 2, "--best-metric", "calfw_eer_percent")
    run, score, asked = Validation.run, Validation._score, []

    def stop_at_the_fourth(self, model, step, log):
        asked.append(step)
        if len(asked) == 2:
            os.kill(os.getpid(), 15)  # noted; the batches see it
        return run(self, model, step, log)

    def made_up(self, *args):
        figures, panels = score(self, *args)
        return figures | {"calfw_eer_percent": {2: 5.0}.get(asked[-1], 30.0)}, panels

    monkeypatch.setattr(Validation, "run", stop_at_the_fourth)
    monkeypatch.setattr(Validation, "_score", made_up)
    outcome = validated(folder, *flags, on=("calfw",))
    assert outcome.status == 143 and "saved: the same command goes on" in outcome.out
    assert [event["step"] for event in events(folder, "validation")] == [2]
    outcome = validated(folder, *flags, on=("calfw",))
    assert outcome.status == 0 and "best by calfw_eer_percent, 5 at step 2" in outcome.out, outcome.err
    assert asked == [2, 4, 4, 6]


def test_another_best_metric_begins_anew(validated, tmp_path):
    assert validated(tmp_path, "--epochs", 1, "--best-metric", "fgnet_rank1_percent").status == 0
    high = torch.load(tmp_path / "checkpoints" / "best.pth", weights_only=True)["best"]
    assert validated(tmp_path, "--epochs", 2, "--best-metric", "fgnet_cmc_percent_1", "--override-config").status == 0
    best = torch.load(tmp_path / "checkpoints" / "best.pth", weights_only=True)
    reply = {event["step"]: event["fgnet_cmc_percent_1"] for event in events(tmp_path, "validation")}
    assert best["best"] == max(reply[step] for step in (4, 6)) != high


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--validate-every", "2", "--validate-on", "lfw"], "--validate-on lfw: 'lfw' is no benchmark: give one of"),
        (["--validate-every", "2", "--validate-on", "fgnet", "fgnet"], "--validate-on has one name twice"),
        (["--validate-every", "2", "--validate-on", "no.bin"], "'no.bin' cannot be read as a verification set"),
        (["--validate-every", "2", "--validate-on", "calfw", "--face-dataset", "nowhere"],
         "--validate-on calfw: The folder 'nowhere/CALFW/processed_CALFW_2' of CALFW images"),
        (["--validate-every", "2", "--validate-on", "fgnet", "--face-dataset", "nowhere"], "ID_processed_FGNET"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_before_training(train_identity, tmp_path, flags, words):
    outcome = train_identity(tmp_path / "run", *flags)
    assert outcome.status == 2 and words in outcome.err, outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_an_unknown_figure_is_refused_before_training_with_those_that_there_are(validated, tmp_path):
    outcome = validated(tmp_path / "run", "--best-metric", "fgnet_rank_1", on=("fgnet", "calfw"))
    assert outcome.status == 2 and "face_recognition_loss" in outcome.err
    assert "fgnet_rank1_percent, fgnet_cmc_percent_1, fgnet_cmc_percent_10, calfw_accuracy_percent" in outcome.err
    assert "images_per_second" not in outcome.err  # 4b: it says nothing about the weights
    assert not (tmp_path / "run").exists()


def test_a_picture_of_the_pair_list_that_is_missing_is_named_before_training(validated, tiny_faces, tmp_path):
    shutil.copytree(tiny_faces / "CALFW", tmp_path / "faces" / "CALFW")
    lost = sorted((tmp_path / "faces" / "CALFW" / "processed_CALFW_2").iterdir())[0]
    lost.unlink()
    outcome = validated(tmp_path / "run", "--face-dataset", tmp_path / "faces", on=("calfw",))
    assert outcome.status == 2 and lost.name in outcome.err and "--allow-missing" not in outcome.err


def test_a_picture_that_breaks_in_mid_training_is_reported_and_training_goes_on(validated, tiny_faces, tmp_path):
    shutil.copytree(tiny_faces / "ID_processed_FGNET", tmp_path / "faces" / "ID_processed_FGNET")
    broken = sorted((tmp_path / "faces").rglob("*.JPG"))[3]
    broken.write_bytes(broken.read_bytes()[:500])
    outcome = validated(tmp_path / "run", "--face-dataset", tmp_path / "faces", "--epochs", 1)
    assert outcome.status == 0 and "validation at step 2 failed, training goes on" in outcome.out
    failed = events(tmp_path / "run", "validation_failed")
    assert [event["step"] for event in failed] == [2, 3] and all(broken.name in event["reason"] for event in failed)
    assert (tmp_path / "run" / "iefp.pth").exists()


# ------------------------------------------------------------------------------------------------------ two processes


def test_two_processes_validate_what_the_first_one_saves(tiny_faces, age_weights, run_main, tmp_path):
    """Each process's BatchNorm statistics are its own between steps: the figures must be of those that are saved."""
    flags = ("--train-data", training_set(tiny_faces), "--age-weights", age_weights, "--run-folder", tmp_path / "run",
             *SMALL, "--epochs", 1, "--validate-every", 2, "--validate-on", "fgnet", "calfw", "--face-dataset",
             tiny_faces, "--best-metric", "calfw_auc_percent")  # fmt: skip
    reply = run_program("train", 2, *flags).out
    assert reply.count("validation at step 3, fgnet") == 1 and (tmp_path / "run" / "iefp_best.pth").exists()
    last = events(tmp_path / "run", "validation")[-1]
    flags = ("--weights", tmp_path / "run" / "iefp.pth", "--face-dataset", tiny_faces, "--workers", 0, "--device",
             "cpu", "--no-analysis", "--benchmarks", "fgnet", "calfw", "--output", tmp_path / "results")  # fmt: skip
    assert run_main("test", *flags).status == 0
    (model,) = json.loads((tmp_path / "results" / "results.json").read_text())["models"]
    calfw = model["results"]["calfw"]["verification"]["concatenate"]
    fgnet = model["results"]["fgnet"]["mates_against_rest"]["concatenate"]
    assert last["calfw_auc_percent"] == pytest.approx(calfw["auc_percent"], rel=1e-9)
    assert last["fgnet_cmc_percent_1"] == pytest.approx(fgnet["cmc_percent_1"], rel=1e-9)
