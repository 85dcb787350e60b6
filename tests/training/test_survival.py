"""Training that survives: kills, requests to stop, other settings and models, bad numbers, bad pictures."""

import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys

import torch
from conftest import identity_flags
from processes import free_port, in_processes, run_program, train_with
from scripts import ROOT, load_script
from test_train import read_log, same_weights, training_set

from models.weights import load_for_embedding
from training import checkpoint


def kill_runs() -> None:
    sys.argv = ["kill_and_resume.py", "--trials", "2"]
    sys.exit(importlib.import_module("kill_and_resume").main())


def test_runs_killed_at_random_moments_end_as_if_never_stopped():
    ended = in_processes(1, kill_runs)
    assert ended.statuses == [0], ended
    reply = json.loads(ended.out.splitlines()[-1])
    assert reply["lost"] == 0 and sum(reply["kills"].values()) >= 2 and reply["resumed_from_a_checkpoint"] >= 1


# -------------------------------------------------------------------------------------- other settings, other models


def test_other_settings_can_be_insisted_on(train_identity, plain_run, tmp_path):
    shutil.copytree(plain_run, tmp_path / "run")
    longer = ("--epochs", 2, "--learning-rate", 0.001)
    refused = train_identity(tmp_path / "run", *longer)
    assert refused.status == 2 and "--epochs 1 -> 2; --learning-rate 0.02 -> 0.001" in refused.err
    outcome = train_identity(tmp_path / "run", *longer, "--override-config")
    assert outcome.status == 0 and "goes on with other settings" in outcome.out and "3 steps done" in outcome.out
    assert [event["learning_rate"] for event in read_log(tmp_path / "run") if event["event"] == "train"] == [
        0.02, 0.02, 0.02, 0.001, 0.001, 0.001]  # fmt: skip


def test_another_number_of_identities_is_refused_and_init_from_takes_what_fits(
    train_identity, plain_run, tiny_faces, tmp_path
):
    fewer = tmp_path / "fewer"
    shutil.copytree(training_set(tiny_faces), fewer)
    shutil.rmtree(sorted(fewer.iterdir())[0])
    refused = train_identity(plain_run, "--epochs", 1, "--train-data", fewer, "--override-config")
    assert refused.status == 2 and "--init-from" in refused.err
    outcome = train_identity(tmp_path / "new", "--epochs", 1, "--train-data", fewer, "--learning-rate", 1e-9,
                             "--init-from", plain_run / "iefp.pth")  # fmt: skip
    assert outcome.status == 0 and "1 start new (margin_fc.weight)" in outcome.out
    old, new = (load_for_embedding(folder / "iefp.pth")[0] for folder in (plain_run, tmp_path / "new"))
    assert torch.allclose(old.backbone_id.conv1.weight, new.backbone_id.conv1.weight, atol=1e-6)


def test_the_best_checkpoint_by_a_named_metric_is_kept(train_identity, tmp_path):
    flags = ("--epochs", 3, "--best-metric", "face_recognition_loss", "--keep-checkpoints", 1)
    assert train_identity(tmp_path / "run", *flags).status == 0
    losses: dict[int, list[float]] = {}
    for event in read_log(tmp_path / "run"):
        if event["event"] == "train":
            losses.setdefault(event["epoch"], []).append(event["face_recognition_loss"])
    best = min(losses, key=lambda epoch: sum(losses[epoch]))
    kept = torch.load(tmp_path / "run" / "checkpoints" / "best.pth", weights_only=True)
    assert kept["position"]["epoch"] == best + 1
    outcome = train_identity(tmp_path / "other", "--epochs", 1, "--best-metric", "accuracy")
    assert outcome.status == 2 and "--best-metric accuracy is not logged" in outcome.err


# ------------------------------------------------------------------------------------------------- numbers, pictures


def test_a_number_that_is_not_finite_names_term_step_and_files_and_keeps_the_last_good_checkpoint(
    train_identity, tiny_faces, tmp_path, monkeypatch
):
    stage, steps = load_script("train").IdentityStage, []
    step_of_stage = stage.step

    def step(self, batch):
        steps.append(1)
        return step_of_stage(self, dataclasses.replace(batch, images=batch.images * (float("nan") if steps[4:] else 1)))

    monkeypatch.setattr(stage, "step", step)
    outcome = train_identity(tmp_path / "run", "--epochs", 2, "--save-every", 2, "--log-every", 100)
    assert outcome.status == 2 and "not finite at step 4: face_recognition_loss nan" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 or "epoch" in outcome.err
    (listed,) = (tmp_path / "run").glob("bad_batch_step_4_rank_0.txt")
    names = listed.read_text().splitlines()
    assert len(names) == 6 and all((training_set(tiny_faces) / name).is_file() for name in names)
    content = checkpoint.load_newest(tmp_path / "run" / "checkpoints", print)
    assert content["step"] == 4 and all(value.isfinite().all() for value in content["model"].values())


def test_bad_images_are_skipped_when_asked_listed_and_too_many_end_the_run(train_identity, tiny_faces, tmp_path):
    folder = tmp_path / "faces"
    shutil.copytree(training_set(tiny_faces), folder)
    broken = sorted(folder.glob("*/*.jpg"))[7]
    broken.write_bytes(broken.read_bytes()[:500])
    flags = ("--train-data", folder, "--epochs", 2, "--on-bad-image", "skip")
    refused = train_identity(tmp_path / "a", *flags)  # one of 18 is more than the default share of 0.001
    assert refused.status == 2 and "--max-bad-share" in refused.err
    outcome = train_identity(tmp_path / "b", *flags, "--max-bad-share", 0.1)
    assert outcome.status == 0
    listed = (tmp_path / "b" / "bad_images.txt").read_text().splitlines()
    assert len(listed) == 1 and broken.name in listed[0]


# ------------------------------------------------------------------------------------------------ several processes


def ask_to_stop(step: int) -> None:
    if os.environ["RANK"] == "1" and step == 2:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_request_to_one_rank_stops_both_and_one_process_goes_on_at_the_same_image(
    tiny_faces, age_weights, train_identity, tmp_path
):
    flags = [*identity_flags(tiny_faces, age_weights), "--run-folder", str(tmp_path / "run"), "--epochs", "1"]
    ended = in_processes(2, train_with, ask_to_stop, flags)
    assert ended.statuses == [143, 143] and "after step 2; saved" in ended.out, ended.err[-3000:]
    outcome = train_identity(tmp_path / "run", "--epochs", 1)
    assert outcome.status == 0 and "2 steps done" in outcome.out
    events = [event for event in read_log(tmp_path / "run") if event["event"] in ("start", "train")]
    assert [event.get("step", event.get("processes")) for event in events] == [2, 1, 2, 1, 3]


def die_then_stop(step: int) -> None:
    """The second process dies at its fourth step; once both are started again, torchrun is asked to stop."""
    place = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"]), step
    if place == (1, 0, 4):
        os._exit(7)
    if place == (0, 1, 2):
        for _ in range(2):  # as `timeout` sends it: to the process and to its group
            os.kill(os.getppid(), signal.SIGTERM)


def test_a_rank_that_dies_ends_the_others_a_restart_goes_on_and_a_signal_to_torchrun_saves(
    tiny_faces, age_weights, tmp_path
):
    """10: torchrun starts both again and hands the signal on, which data workers outlive; it ends as if unstopped."""
    program = tmp_path / "driver.py"
    program.write_text(f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}, {str(ROOT / "tests" / "training")!r}]
from processes import train_with
from test_survival import die_then_stop
train_with(die_then_stop, sys.argv[1:])
""")
    flags = [*identity_flags(tiny_faces, age_weights), "--epochs", "2", "--save-every", "1", "--run-folder"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1",
                "--master-port", str(free_port())]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    stopped = subprocess.run([*torchrun, program, *flags, tmp_path / "run", "--workers", "1"], capture_output=True,
                             text=True, check=False, env=environment, timeout=120)  # fmt: skip
    assert "asked to stop (signal 15) after step 5; saved: the same command goes on" in stopped.stdout, stopped
    assert "DataLoader worker" not in stopped.stderr and not (tmp_path / "run" / "iefp.pth").exists()
    for name in ("run", "whole"):
        run_program("train", 2, *flags, tmp_path / name)
    starts = [event["resumed_step"] for event in read_log(tmp_path / "run") if event["event"] == "start"]
    assert starts == [0, 3, 5]
    assert same_weights(tmp_path / "run" / "iefp.pth", tmp_path / "whole" / "iefp.pth")
