"""--wandb (training/run_log.py), by a stand-in for wandb: what it is given, under which id, and what can go wrong."""

import sys
from types import SimpleNamespace

import pytest

from meta import UserError
from training.run_log import RunLog, Tracker


class StandIn:
    """As much of wandb as is used; keeps what it was called with."""

    class errors:
        class Error(Exception): ...

    def __init__(self, refuses: bool = False):
        self.begun, self.logged, self.metrics, self.finished, self.refuses = [], [], [], 0, refuses

    def init(self, **given):
        if self.refuses:
            raise self.errors.Error("api_key not configured\nsecond line")
        self.begun.append(given)

        def finish():
            self.finished += 1

        return SimpleNamespace(
            log=self.logged.append,
            define_metric=lambda name, **more: self.metrics.append((name, more)),
            finish=finish,
        )


@pytest.fixture
def wandb(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def test_it_gets_the_settings_and_what_tensorboard_gets_and_is_ended(wandb, tmp_path):
    log = RunLog(tmp_path / "run", tracker=Tracker("faces", tmp_path / "run", {"epochs": 2}))
    log.event("start", images=12)
    log.event("train", 5, loss=0.25, note="text")
    log.close()
    (begun,) = wandb.begun
    assert begun["project"] == "faces" and begun["config"] == {"epochs": 2} and begun["name"] == "run"
    assert wandb.logged == [{"step": 5, "train/loss": 0.25}] and wandb.finished == 1
    assert wandb.metrics == [("step", {}), ("*", {"step_metric": "step"})]


def test_a_run_that_goes_on_has_the_id_of_its_folder_and_another_has_another(wandb, tmp_path):
    for folder in ("a", "a", "b"):
        Tracker("faces", tmp_path / folder, {}).close()
    ids = [begun["id"] for begun in wandb.begun]
    assert ids[0] == ids[1] != ids[2] and ids[0] == (tmp_path / "a" / "wandb_id.txt").read_text().strip()
    assert {begun["resume"] for begun in wandb.begun} == {"allow"}


def test_a_service_that_refuses_is_one_sentence(wandb, tmp_path):
    wandb.refuses = True
    with pytest.raises(UserError, match="--wandb faces can't be started .api_key not configured.: log in") as refused:
        Tracker("faces", tmp_path, {})
    assert "\n" not in str(refused.value)


def test_without_the_package_a_run_ends_before_it_begins(train_identity, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    outcome = train_identity(tmp_path / "run", "--epochs", 1, "--wandb", "faces")
    assert outcome.status == 2 and "pip install wandb" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and not (tmp_path / "run").exists()
