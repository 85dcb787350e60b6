"""evaluation/age_labelling.py: every picture gets its own age, also where the work was stopped in between."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation import age_labelling
from evaluation.age_labelling import HEADER_BYTES, both_views, label_ages, open_part_file
from meta import UserError
from utils.files import sha256

NUM_IMAGES = 11
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (NUM_IMAGES, 3, 112, 112), dtype=torch.uint8, generator=torch.manual_seed(2))


def predict(images: torch.Tensor) -> torch.Tensor:
    """Years encoded in the upper left corner: the mirror image has others."""
    assert images.dtype == torch.uint8 and not torch.is_grad_enabled()
    return images[:, 0, 0, :8].double().mean(dim=1) / 4


def by_itself(image: torch.Tensor) -> float:
    row = image[0, 0].tolist()
    return (sum(row[:8]) / 8 / 4 + sum(row[-8:]) / 8 / 4) / 2


class Batches:
    """Makes batches of any positions, and remembers which were asked for."""

    def __init__(self, images, batch_size=3, stop_after=None, broken=()):
        self.broken = broken  # of these the next picture stands in the batch
        self.images, self.batch_size, self.stop_after, self.asked = images, batch_size, stop_after, []

    def __call__(self, positions):
        self.asked.append(positions.tolist())
        for count, start in enumerate(range(0, len(positions), self.batch_size)):
            if count == self.stop_after:
                raise KeyboardInterrupt
            rows = torch.from_numpy(positions[start : start + self.batch_size])
            failures = tuple(f"'{row}.jpg': broken" for row in rows.tolist() if row in self.broken)
            rows = torch.tensor([(row + 1) % NUM_IMAGES if row in self.broken else row for row in rows.tolist()])
            yield SimpleNamespace(images=self.images[rows], indices=rows, failures=failures)


def label(batches, path, fingerprint="weights data", said=None, predict=predict, **how) -> np.ndarray:
    report = (lambda _: None) if said is None else said.append
    labelled = label_ages(
        predict, batches, NUM_IMAGES, CPU, part_path=path, fingerprint=fingerprint, report=report, **how
    )
    assert labelled.failures == ()
    return labelled.ages


def test_each_age_is_the_mean_of_the_picture_and_its_mirror_image(images, tmp_path):
    ages = label(Batches(images), tmp_path / "ages.part")
    assert ages.dtype == np.float32 and not isinstance(ages, np.memmap)
    np.testing.assert_allclose(ages, [by_itself(image) for image in images], rtol=1e-6)
    assert abs(predict_without_check(images) - ages).max() > 1  # one view alone says something else


def predict_without_check(images):
    return (images[:, 0, 0, :8].double().mean(dim=1) / 4).numpy()


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
def test_the_batch_size_does_not_matter(images, tmp_path, batch_size):
    ages = label(Batches(images, batch_size), tmp_path / "ages.part", flush_every=2)
    assert ages.tolist() == label(Batches(images), tmp_path / "other.part").tolist()


def test_batches_may_come_in_any_order(images, tmp_path):
    def backwards(positions):
        return Batches(images)(positions[::-1].copy())

    assert label(backwards, tmp_path / "a").tolist() == label(Batches(images), tmp_path / "b").tolist()


@pytest.mark.parametrize("stopped_after", [0, 1, 3])
def test_stopped_and_started_again_it_asks_only_for_what_is_missing(images, tmp_path, stopped_after):
    path, said = tmp_path / "sub" / "ages.part", []
    with pytest.raises(KeyboardInterrupt):
        label(Batches(images, stop_after=stopped_after), path, said=said)
    assert said == []
    again = Batches(images)
    ages = label(again, path, said=said)
    expected = [f"{3 * stopped_after} of 11 ages"] if stopped_after else []
    assert [sentence.split(" are in ")[0] for sentence in said] == expected
    assert again.asked == [list(range(3 * stopped_after, NUM_IMAGES))]
    assert ages.tolist() == label(Batches(images), tmp_path / "other").tolist()
    third = Batches(images)
    assert label(third, path, said=said).tolist() == ages.tolist() and third.asked == []
    assert said[-1].startswith("11 of 11 ages")


def test_killed_without_a_word_it_loses_no_more_than_the_batches_since_the_last_flush(tmp_path):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(age_labelling.__file__).parent.parent)!r})
import numpy as np, torch
from types import SimpleNamespace
from evaluation.age_labelling import label_ages
def batches(positions):
    for row in positions:
        if row == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield SimpleNamespace(images=torch.zeros(1, 3, 112, 112, dtype=torch.uint8), indices=torch.tensor([row]),
                              failures=())
label_ages(lambda images: torch.full((len(images),), 7.0), batches, {NUM_IMAGES}, torch.device("cpu"),
           part_path=sys.argv[1], fingerprint="weights data", flush_every=2)
"""
    path = tmp_path / "ages.part"
    killed = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    known = ~np.isnan(open_part_file(path, NUM_IMAGES, "weights data"))
    assert known[:4].all() and not known[5:].any()


def test_what_is_known_goes_to_the_disk_every_so_many_batches_and_at_the_end(images, tmp_path, monkeypatch):
    known, real_flush = [], np.memmap.flush
    monkeypatch.setattr(np.memmap, "flush", lambda ages: (known.append(int((~np.isnan(ages)).sum())), real_flush(ages)))
    label(Batches(images), tmp_path / "ages.part", flush_every=2)
    assert known[:2] == [6, 11] and set(known[2:]) <= {11}  # numpy flushes once more when it lets go of the file


@pytest.mark.parametrize("other", ["other weights", "other number", "damaged", "longer"])
def test_what_belongs_to_other_weights_or_data_is_dropped_with_a_sentence(images, tmp_path, other):
    path, said = tmp_path / "ages.part", []
    if other == "other number":
        open_part_file(path, NUM_IMAGES + 1, "weights data")[:] = 5
    else:
        label(Batches(images), path, fingerprint="before" if other == "other weights" else "weights data")
    if other == "damaged":
        with open(path, "r+b") as file:
            file.seek(HEADER_BYTES + 8)
            file.write(np.float32(1e9).tobytes())
    if other == "longer":
        with open(path, "ab") as file:
            file.write(b"more")
    again = Batches(images)
    label(again, path, said=said)
    assert again.asked == [list(range(NUM_IMAGES))]
    assert len(said) == 1 and "other weights or other pictures, or damaged: starting anew" in said[0]
    assert os.listdir(tmp_path) == ["ages.part"]


def test_a_file_or_folder_of_the_users_under_that_name_is_left_alone(images, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="mine' holds no unfinished ages, whose place it is: move it away"):
        label(Batches(images), tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(UserError, match="is a folder"):
        label(Batches(images), tmp_path)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -0.5, 120.5])
def test_ages_that_are_none_are_refused_and_what_came_before_is_kept(images, tmp_path, wrong):
    def broken(batch):
        years = predict(batch)  # of one picture and its mirror image
        return torch.full_like(years, wrong) if torch.equal(batch[0], images[7]) else years

    with pytest.raises(UserError, match="gives picture number 7 the age .*weights are damaged"):
        label(Batches(images, 1), tmp_path / "ages.part", predict=broken)
    again = Batches(images)
    label(again, tmp_path / "ages.part")
    assert again.asked == [[7, 8, 9, 10]]


def test_an_error_among_the_batches_is_passed_on_and_what_came_before_is_kept(images, tmp_path):
    def unreadable(positions):
        yield from Batches(images)(positions[:6])
        raise UserError("'7.jpg' cannot be decoded")

    with pytest.raises(UserError, match="'7.jpg' cannot"):
        label(unreadable, tmp_path / "ages.part")
    again = Batches(images)
    label(again, tmp_path / "ages.part")
    assert again.asked == [list(range(6, NUM_IMAGES))]


def test_broken_pictures_end_nothing_and_are_reported(images, tmp_path):
    said = []
    for _ in range(2):  # the second time they alone are tried, and replaced again
        batches = Batches(images, broken=(4, 10))
        labelled = label_ages(predict, batches, NUM_IMAGES, CPU, part_path=tmp_path / "ages.part",
                              fingerprint="both", report=said.append)  # fmt: skip
        assert labelled.failures == ("'4.jpg': broken", "'10.jpg': broken")
        assert np.flatnonzero(np.isnan(labelled.ages)).tolist() == [4, 10]
        expected = [by_itself(image) for row, image in enumerate(images) if row not in (4, 10)]
        np.testing.assert_allclose(np.delete(labelled.ages, [4, 10]), expected, rtol=1e-6)
    assert batches.asked == [[4, 10]]
    repaired = Batches(images)
    assert not np.isnan(label(repaired, tmp_path / "ages.part", "both")).any() and repaired.asked == [[4, 10]]


def test_a_picture_that_never_comes_is_noticed(images, tmp_path):
    with pytest.raises(AssertionError, match="every picture"):
        label(lambda positions: Batches(images)(positions[:-1]), tmp_path / "ages.part")


def test_views_are_averaged_in_float32_also_where_the_network_is_less_exact(images):
    rough = both_views(lambda pictures: predict_rough(pictures), images)
    assert rough.dtype == torch.float32 and rough.shape == (NUM_IMAGES,)


def predict_rough(images):
    return (images[:, 0, 0, :8].float().mean(dim=1) / 4).bfloat16()


def test_the_sha256_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(OSError):
            sha256(path)
