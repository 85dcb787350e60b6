"""What several test files use: a tiny set of made-up faces in all layouts, and scripts run inside this process."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import hypothesis
import process_server
import pytest
import torch
from scripts import TINY, load_script

from data.synthetic.sets import write_all
from meta import TRAINING_SETS
from models.iefp import IEFP
from models.weights import age_file_tensors, iefp_file_tensors
from utils.cli import parse_config, run_script

# The same examples in every run: to look for new ones is what `make fuzz` is for.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")
torch.set_num_threads(1)  # the tests run in several processes


def pytest_configure(config: pytest.Config) -> None:
    """Starts one server of processes for all workers of pytest-xdist, where there are some."""
    if getattr(config.option, "numprocesses", None):
        process_server.start()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts training first: its tests take longest, and one that begins last keeps a process alone."""
    items.sort(key=lambda item: "training" not in item.path.parts)


SMALL = ("--backbone", TINY, "--batch-size", "6", "--workers", "0", "--learning-rate", "0.02",
         "--log-every", "1", "--device", "cpu")  # fmt: skip


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny_faces(tmp_path_factory) -> Path:
    """A face_dataset folder: 6 people for training, a few for each benchmark."""
    root = tmp_path_factory.mktemp("faces") / "face_dataset"
    write_all(
        root,
        num_people=6,
        pictures_per_person=3,
        fgnet_people=4,
        fgnet_pictures_per_person=4,
        morph2_subjects=(3, 5),
        cacd_vs_pairs=20,
        calfw_pairs=20,
        progress=False,
    )
    return root


@pytest.fixture
def run_main(monkeypatch, capfd):
    """Runs a script's main function with flags as from the command line; gives its status and what it printed."""
    entries = {
        "train": ("TrainConfig", "train"),
        "test": ("TestConfig", "test"),
        "prepare": ("Subcommand", None),
        "embed": ("EmbedConfig", "main"),
        "export": ("ExportConfig", "export"),
        "purify": ("PurifyConfig", "purify"),
    }

    def run(script: str, *flags: object) -> Outcome:
        module = load_script(script)
        config_name, function_name = entries[script]
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, flags)])

        def main() -> int | None:
            config = parse_config(getattr(module, config_name))
            return getattr(module, function_name)(config) if function_name else config.run()

        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_script(main)
        return Outcome(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def age_weights(tmp_path_factory) -> Path:
    """An untrained age branch in the published layout: enough for stage identity to start from."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("age") / "age.pth"
    torch.save(age_file_tensors(IEFP(TINY, 1, None)), path)
    return path


def identity_flags(faces: Path, age_weights: Path) -> list[str]:
    """Those of a small run of stage identity, without its run folder."""
    return ["--train-data", str(faces / TRAINING_SETS["ms1mv3"].folder), "--age-weights", str(age_weights), *SMALL]


@pytest.fixture
def train_identity(run_main, tiny_faces, age_weights):
    def train(run_folder: Path, *flags: object):
        return run_main("train", *identity_flags(tiny_faces, age_weights), "--run-folder", run_folder, *flags)

    return train


@pytest.fixture(scope="session")
def plain_run(tiny_faces, age_weights, tmp_path_factory) -> Path:
    """What `train_identity(folder, "--epochs", 1)` leaves: a run of three steps, to be looked at or copied."""
    folder, train = tmp_path_factory.mktemp("plain") / "run", load_script("train")
    flags = [*identity_flags(tiny_faces, age_weights), "--run-folder", str(folder), "--epochs", "1"]
    assert train.train(parse_config(train.TrainConfig, flags)) == 0
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A model in the published layout, untrained but for its CLUB, which has seen one batch."""
    torch.manual_seed(3)
    path, model = tmp_path_factory.mktemp("weights") / "iefp.pth", IEFP(TINY, 1, 6)
    model.clubmi(*torch.randn(2, 8, 512))
    torch.save(iefp_file_tensors(model), path)
    return path


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory) -> Path:
    """Another such model."""
    torch.manual_seed(8)
    path = tmp_path_factory.mktemp("other") / "other.pth"
    torch.save(iefp_file_tensors(IEFP(TINY, 1, 6)), path)
    return path


@pytest.fixture
def run_test(run_main, weights, tmp_path, monkeypatch):
    """Runs test.py, without analysis unless asked and without plots; gives what came of it, and the model's results."""
    monkeypatch.setattr("evaluation.report.page.svg_of", lambda plot: b"")

    def run(faces: Path, *flags: object) -> tuple[Outcome, dict]:
        outcome = run_main("test", "--weights", weights, "--face-dataset", faces, "--output", tmp_path / "results",
                           "--workers", 0, "--device", "cpu", "--no-analysis", *flags)  # fmt: skip
        path = tmp_path / "results" / "results.json"
        return outcome, json.loads(path.read_text())["models"][0] if path.exists() else {}

    return run
