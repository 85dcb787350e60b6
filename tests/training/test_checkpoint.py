"""training/checkpoint.py: never half a file, the newest are kept, nothing but tensors and plain values is read."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from meta import UserError
from training import checkpoint
from training.checkpoint import (
    FORMAT,
    checksum_path,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_atomically,
    save_checkpoint,
)
from utils.files import sha256


def content(step: int = 0) -> dict:
    """What train.py saves, in small."""
    parameter = torch.nn.Parameter(torch.arange(600.0) + step)
    optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimiser.step()
    return {
        "model": {"weight": parameter.detach()},
        "optimisers": {"identity": optimiser.state_dict()},
        "config": {"epochs": [1, 2], "margin": None, "rate": 0.1, "folder": "a b", "quick": True},
        "scaler": {},
    }


def with_checksums(checkpoints: list[str]) -> list[str]:
    return sorted(name for path in checkpoints for name in (path, path + ".sha256"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was_saved_with_its_step(tmp_path):
    saved = content(7)
    path = save_checkpoint(tmp_path / "new" / "checkpoints", 1234, saved, keep=2)
    assert path == tmp_path / "new" / "checkpoints" / "step_00001234.pth"
    assert names(path.parent) == with_checksums([path.name])
    loaded = load_checkpoint(path)
    assert loaded["step"] == 1234
    assert torch.equal(loaded["model"]["weight"], saved["model"]["weight"])
    momentum = [each["optimisers"]["identity"]["state"][0]["momentum_buffer"] for each in (loaded, saved)]
    assert torch.equal(*momentum)
    assert (loaded["config"], loaded["scaler"]) == (saved["config"], saved["scaler"])


# ----------------------------------------------------------------------------------------------- which are kept


@pytest.mark.parametrize("keep", [1, 3, 10])
def test_the_newest_are_kept(tmp_path, keep):
    steps = (2, 9, 10, 11, 99_999_999, 100_000_000)  # more than eight digits are newer
    for step in steps:
        save_checkpoint(tmp_path, step, content(step), keep)
    expected = [f"step_{step:08d}.pth" for step in steps[-keep:]]
    assert [path.name for path in list_checkpoints(tmp_path)] == expected
    assert names(tmp_path) == with_checksums(expected)


def test_other_files_in_the_folder_are_neither_listed_nor_removed(tmp_path):
    others = ["iefp.pth", "step_1.pth", "step_00000001.pth.old", "my_step_00000001.pth"]
    for name in others:
        (tmp_path / name).write_text("")
    path = save_checkpoint(tmp_path, 5, content(), keep=1)
    assert list_checkpoints(tmp_path) == [path] and list_checkpoints(tmp_path / "nowhere") == []
    assert names(tmp_path) == sorted([*others, *with_checksums([path.name])])


# ------------------------------------------------------------------------------------------------- half a file


def write_half_then(error: BaseException):
    def save(_content, file):
        file.write(b"PK\x03\x04 half of it")
        raise error

    return save


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_saving_that_fails_midway_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch, error):
    path = tmp_path / "iefp.pth"
    save_atomically({"old": torch.ones(3)}, path)
    monkeypatch.setattr(torch, "save", write_half_then(error))
    for target in (path, tmp_path / "another.pth"):
        with pytest.raises(type(error)):
            save_atomically({"new": torch.zeros(3)}, target)
    with pytest.raises(type(error)):
        save_checkpoint(tmp_path, 3, content(3), keep=1)
    assert names(tmp_path) == ["iefp.pth"]
    assert torch.equal(torch.load(path, weights_only=True)["old"], torch.ones(3))


def test_the_old_file_stands_until_the_new_one_is_whole_and_on_disk(tmp_path, monkeypatch):
    path = tmp_path / "iefp.pth"
    path.write_bytes(b"old")
    synced = []

    def look(descriptor: int) -> None:
        synced.append((path.read_bytes(), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", look)
    monkeypatch.setattr(checkpoint, "flush_folder", lambda folder: None)
    monkeypatch.setattr(torch, "save", lambda content, file: file.write(content))
    save_atomically(b"the new one", path)
    assert synced == [(b"old", len(b"the new one"))]
    assert path.read_bytes() == b"the new one"


# ------------------------------------------------------------------------------------------------ damaged, best


def flip_a_byte(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


def test_a_single_flipped_bit_is_reported_and_the_checkpoint_before_is_used(tmp_path):
    paths = [save_checkpoint(tmp_path, step, content(step), keep=3) for step in (1, 2, 3)]
    flip_a_byte(paths[2])
    checksum_path(paths[1]).unlink()
    reports = []
    assert load_newest(tmp_path, reports.append)["step"] == 1
    assert [str(path) in report for path, report in zip((paths[2], paths[1]), reports, strict=True)] == [True, True]


def test_no_checkpoint_is_a_new_run_and_only_bad_ones_are_an_error(tmp_path):
    assert load_newest(tmp_path, print) is None
    flip_a_byte(save_checkpoint(tmp_path, 1, content(), keep=1))
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        load_newest(tmp_path, lambda report: None)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_the_best_outlives_its_step_and_gives_way_to_a_better_one(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("not here")))
    for step, is_best in ((1, True), (2, False), (3, False)):
        save_checkpoint(tmp_path, step, content(step), keep=1, is_best=is_best)
    assert torch.load(tmp_path / "best.pth", weights_only=True)["step"] == 1
    save_checkpoint(tmp_path, 4, content(4), keep=1, is_best=True)
    assert torch.load(tmp_path / "best.pth", weights_only=True)["step"] == 4
    assert names(tmp_path) == with_checksums(["best.pth", "step_00000004.pth"])
    assert load_checkpoint(tmp_path / "best.pth")["step"] == 4
    assert len((tmp_path / "best.pth.sha256").read_text().splitlines()) == 1


# ----------------------------------------------------------------------------------------------- what is refused


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


GOOD = {"format": FORMAT, "step": 3}
BAD_FILES = {
    "truncated": lambda path: (torch.save(GOOD | content(), path), os.truncate(path, path.stat().st_size // 2)),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello, this is no checkpoint.\n" * 20),
    "code": lambda path: torch.save(GOOD | {"model": Code(path.with_name("executed"))}, path),
    "code in a bare pickle": lambda path: path.write_bytes(
        pickle.dumps(GOOD | {"model": Code(path.with_name("executed"))}, protocol=2)
    ),
    "another format": lambda path: torch.save(GOOD | {"format": FORMAT + 1}, path),
    "no format": lambda path: torch.save({"weight": torch.zeros(3)}, path),
    "no table": lambda path: torch.save(torch.zeros(3), path),
    "a folder": lambda path: path.mkdir(),
    "missing": lambda path: None,
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_sentence_that_names_it(tmp_path, what):
    path = tmp_path / "step_00000003.pth"
    BAD_FILES[what](path)
    if path.is_file():
        checksum_path(path).write_text(f"{sha256(path)}  {path.name}\n")
    with pytest.raises(UserError) as refused:
        load_checkpoint(path)
    sentence = str(refused.value)
    assert str(path) in sentence and "is not used" in sentence
    assert "\n" not in sentence and ". " not in sentence and sentence.endswith(".")
    assert "weights_only" not in sentence  # torch's advice to load it all the same
    assert not (tmp_path / "executed").exists()


def test_the_code_in_those_files_would_run_if_it_were_let(tmp_path):
    BAD_FILES["code"](tmp_path / "step_00000003.pth")
    torch.load(tmp_path / "step_00000003.pth", weights_only=False)
    assert (tmp_path / "executed").is_dir()
