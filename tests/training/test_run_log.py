"""training/run_log.py: what a run leaves to read, means of losses, progress."""

import io
import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from meta import UserError
from training import run_log
from training.run_log import BadImages, Meter, RunLog, TimeLeft, duration
from utils.distributed import DistInfo
from utils.progress import progress

ALONE = DistInfo(rank=0, world_size=1, device=torch.device("cpu"))


def read_lines(folder: Path) -> list[dict]:
    text = (folder / "log.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


# ------------------------------------------------------------------------------------------------------------ log


def test_each_event_is_one_json_line_that_is_on_disk_at_once(tmp_path):
    log = RunLog(tmp_path / "new" / "run")
    log.event("start", images=12, folder="a\nb", learning_rates=[0.1, 0.01])
    (start,) = read_lines(tmp_path / "new" / "run")  # before close
    assert start.pop("time") > 0
    assert start == {"event": "start", "images": 12, "folder": "a\nb", "learning_rates": [0.1, 0.01]}
    log.event("train", 5, loss=0.25)
    log.close()
    assert read_lines(tmp_path / "new" / "run")[1].items() >= {"event": "train", "step": 5, "loss": 0.25}.items()


def test_what_was_logged_after_the_checkpoint_is_taken_out_when_the_run_goes_on_from_it(tmp_path):
    log = RunLog(tmp_path)
    log.event("start", images=12)
    for step in (10, 20, 30):
        log.event("train", step, loss=1.0, epoch=0, note="text")
    log.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"event": "tra')  # killed while writing
    log = RunLog(tmp_path, resumed_step=10)
    log.event("train", 20, loss=2.0, epoch=0)
    log.close()
    lines = read_lines(tmp_path)
    assert [(line["event"], line.get("step"), line.get("loss")) for line in lines] == [
        ("start", None, None), ("train", 10, 1.0), ("train", 20, 2.0)]  # fmt: skip
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert set(curves.Tags()["scalars"]) == {"train/loss", "train/epoch"}  # numbers with a step
    assert [(point.step, point.value) for point in curves.Scalars("train/loss")] == [(10, 1.0), (20, 2.0)]


def test_a_log_that_is_not_enabled_writes_nothing(tmp_path):
    log = RunLog(tmp_path / "run", enabled=False)
    log.event("train", 1, loss=0.5)
    log.close()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- meter


@pytest.fixture
def clock(monkeypatch):
    """The meter's clock, set by hand."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(run_log, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_means_over_steps_are_plain_means_and_restart_at_each_reading(clock):
    meter = Meter(ALONE)
    losses = torch.rand(7, 2, generator=torch.manual_seed(0)).double()
    for steps, seconds in ((slice(0, 5), 4.0), (slice(5, 7), 0.5)):
        for face_recognition_loss, mutual_information in losses[steps]:
            meter.add(0, {"face_recognition_loss": face_recognition_loss, "mutual_information": mutual_information}, 16)
        clock.now += seconds
        means, plain = meter.read(), losses[steps].mean(0).tolist()
        assert list(means) == ["face_recognition_loss", "mutual_information", "images_per_second"]
        assert list(means.values())[:2] == pytest.approx(plain, abs=1e-6)
        assert means["images_per_second"] == 16 * len(losses[steps]) / seconds


def test_images_a_second_count_all_processes_and_means_are_averaged_over_them(clock, monkeypatch):
    processes = DistInfo(rank=1, world_size=3, device=torch.device("cpu"))
    monkeypatch.setattr(run_log, "average", lambda values, process: values + process.world_size)
    meter = Meter(processes)
    meter.add(0, {"loss": torch.tensor(1.0)}, 8)
    clock.now += 2
    assert meter.read() == {"loss": 4.0, "images_per_second": 12.0}


def test_the_meters_last_line_reports_what_was_read():
    meter = Meter(ALONE)
    assert meter.last_line == ""
    meter.add(0, {"age_loss": torch.tensor(2.0)}, 4)
    meter.read()
    meter.add(0, {"age_loss": torch.tensor(8.0)}, 4)
    assert meter.last_line.startswith("age_loss 2, images_per_second ")


def test_the_first_step_with_a_loss_that_is_not_finite_is_kept_with_the_terms_that_were_not():
    meter = Meter(ALONE)
    for step, gradient_norm in ((5, 1.0), (6, math.inf), (7, math.nan)):
        assert (meter.first_bad_step() is None) == (step <= 6)
        meter.add(step, {"loss": torch.tensor(2.0), "gradient_norm": torch.tensor(gradient_norm)}, 4)
        meter.read()
    assert meter.first_bad_step() == (6, {"gradient_norm": math.inf})


# ------------------------------------------------------------------------------------------------------ bad images


def test_bad_images_are_listed_once_over_all_starts_of_a_run_and_too_many_end_it(tmp_path, capsys):
    path = tmp_path / "bad_images.txt"
    for _ in range(2):  # a run and its resumption meet the same files
        bad = BadImages(path, num_images=100, max_share=0.02, process=ALONE)
        bad.add(["'a.jpg': truncated", "'b.jpg': no\nimage"])
        bad.add(["'a.jpg': truncated"])
        bad.check()
    assert path.read_text() == "'a.jpg': truncated\n'b.jpg': no image\n"
    assert capsys.readouterr().err.count("2 more images can't be read") == 1
    bad.add(["'c.jpg': empty"])
    with pytest.raises(UserError, match="3 of 100 images can't be read, more than --max-bad-share 0.02"):
        bad.check()


# ------------------------------------------------------------------------------------------------------- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[Terminal, io.StringIO], ids=["terminal", "file"])
def watch(request, monkeypatch):
    """Call it in the test, not before: pytest puts its own stderr there between a fixture and its test."""

    def start() -> io.StringIO:
        monkeypatch.setattr(sys, "stderr", request.param())
        return sys.stderr

    return start


def test_progress_passes_items_on_as_they_are_wanted_and_shows_the_last_count(watch):
    stderr, asked = watch(), []
    items = progress((asked.append(i) or i for i in range(5)), 5, "epoch 1/2")
    assert next(items) == 0 and asked == [0]
    assert list(items) == [1, 2, 3, 4] and "epoch 1/2" in stderr.getvalue() and "5/5" in stderr.getvalue()


def test_progress_of_a_run_that_goes_on_counts_from_where_it_stopped(watch):
    stderr = watch()
    assert list(progress(range(3), 10, "epoch", start=7)) == [0, 1, 2]
    assert "10/10" in stderr.getvalue() and "3/10" not in stderr.getvalue()


def test_progress_of_nothing_is_nothing_and_without_enabled_it_is_silent(watch):
    stderr = watch()
    assert list(progress(range(3), 3, "epoch", enabled=False)) == [0, 1, 2]
    assert stderr.getvalue() == "" and list(progress([], 0, "epoch")) == []


def test_without_a_terminal_a_line_comes_now_and_then_and_at_the_end(monkeypatch, capsys):
    clock = itertools.count(step=7.0)  # seconds: looked at once before the items and once after each
    monkeypatch.setattr("utils.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert list(progress(range(8), 8, "embedding")) == list(range(8))
    assert capsys.readouterr().err.splitlines() == [
        "embedding: 3/8 (21 s)",
        "embedding: 6/8 (42 s)",
        "embedding: 8/8 (56 s)",
    ]


def test_a_note_ends_each_line_when_there_is_something_to_tell(monkeypatch, capsys):
    clock = itertools.count(step=25.0)
    monkeypatch.setattr("utils.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    seen = []
    for item in progress(range(2), 2, "epoch", note=lambda: "3 min left" if len(seen) > 1 else ""):
        seen.append(item)
    assert capsys.readouterr().err.splitlines() == ["epoch: 1/2 (25 s)", "epoch: 2/2 (50 s), 3 min left"]


def test_a_bar_ends_with_the_note(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress(range(2), 2, "epoch", note=lambda: "3 min left")) == [0, 1]
    assert "3 min left" in sys.stderr.getvalue()


# ------------------------------------------------------------------------------------------------------ time left


def test_the_time_left_is_the_rest_of_the_run_at_the_speed_of_the_last_steps(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(run_log, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(run_log, "STEPS_OF_SPEED", 4)
    left = TimeLeft(100)
    left.add(10)  # a run that goes on: the ten steps before took no time of this start
    assert math.isnan(left.seconds()) and str(left) == ""
    reply = []
    for step, seconds in ((11, 50.0), (12, 2.0), (13, 3.0), (14, 2.0), (15, 2.0), (16, 5.0)):
        clock.now += seconds
        left.add(step)
        reply.append(left.seconds())
    speeds = [50, 2, 5 / 2, 7 / 3, 9 / 4, 12 / 4]  # seconds a step: the first alone at first, then the last four
    assert reply == pytest.approx([speed * (100 - 11 - place) for place, speed in enumerate(speeds)])
    assert str(left) == "4 min left"
    left.add(100)
    assert left.seconds() == 0 and str(left) == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3569, "59 min"), (3571, "1 h 00 min"), (11_100, "3 h 05 min"),
        (86_369, "23 h 59 min"), (86_371, "1 d 0 h"), (198_000, "2 d 7 h"),
    ],
)  # fmt: skip
def test_durations_are_rounded_for_people(seconds, words):
    assert duration(seconds) == words
