"""evaluation/age_labelling.py: every picture gets its own age, also where the work was stopped in between."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import in_processes
from refusals import refused

from evaluation.age_labelling import HEADER_BYTES, both_views, label_ages, open_part_file
from meta import UserError

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


def test_each_age_is_the_mean_of_the_picture_and_its_mirror_image_whatever_the_batches(images, tmp_path):
    ages = label(Batches(images), tmp_path / "ages.part")
    assert ages.dtype == np.float32 and not isinstance(ages, np.memmap)
    np.testing.assert_allclose(ages, [by_itself(image) for image in images], rtol=1e-6)
    with torch.no_grad():
        assert abs(predict(images).numpy() - ages).max() > 1  # one view alone says something else
        rough = both_views(lambda pictures: predict(pictures).bfloat16(), images)
    assert rough.dtype == torch.float32  # views are averaged in float32 where the network is less exact
    for number, batch_size in enumerate((1, 4, 100)):
        again = label(Batches(images, batch_size), tmp_path / str(number), flush_every=2)
        assert again.tolist() == ages.tolist()
    with pytest.raises(AssertionError, match="every picture"):  # one that never comes is noticed
        label(lambda positions: Batches(images)(positions[:-1]), tmp_path / "missing")


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


def label_and_be_killed(path: Path) -> None:
    def batches(positions):
        for row in positions.tolist():
            if row == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield from Batches(torch.zeros(NUM_IMAGES, 3, 112, 112, dtype=torch.uint8))(np.array([row]))

    label(batches, path, flush_every=2)


def test_killed_without_a_word_it_loses_no_more_than_the_batches_since_the_last_flush(tmp_path):
    path = tmp_path / "ages.part"
    assert in_processes(1, label_and_be_killed, path).statuses == [-9]
    known = ~np.isnan(open_part_file(path, NUM_IMAGES, "weights data"))
    assert known[:4].all() and not known[5:].any()


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
    refused(label, Batches(images), tmp_path, match="is a folder")


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

    refused(label, unreadable, tmp_path / "ages.part", match="'7.jpg' cannot")
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
