"""train.py --dry-run: what it reports is measured against a real run, and it leaves nothing behind but a picture."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, identity_flags
from PIL import Image
from processes import in_processes
from scripts import SLIM, TINY, load_script
from test_train import same_weights, training_set

from data.picture_grid import CAPTION_HEIGHT, MARGIN, TITLE_HEIGHT, draw_grid
from meta import FILENAME_PATTERNS
from models.iefp import IEFP
from models.margin import CosFace
from training import disk_usage, dry_run
from utils.cli import parse_config, run_script

SHORT = ("--epochs", 2)
HURRY = 0.05, 0.2  # seconds


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    monkeypatch.setattr(dry_run, "INPUT_SECONDS", HURRY[0])
    monkeypatch.setattr(dry_run, "SECONDS_A_STEP", HURRY[1])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -------------------------------------------------------------------------------------------------- it leaves no trace


def test_a_dry_run_counts_data_parameters_and_files_and_leaves_a_picture_alone(train_identity, tiny_faces, tmp_path):
    # Of TINY's weights the file's own tables are more than 1 %.
    flags, folder = ("--epochs", 1, "--cache-folder", tmp_path / "cache", "--backbone", SLIM), tmp_path / "run"
    outcome = train_identity(folder, *flags, "--dry-run")
    assert outcome.status == 0 and outcome.err == "", outcome.err
    assert list(files(folder)) == ["dry_run.png"] and not list((tmp_path / "cache").glob("*age_features*"))
    assert "it would begin anew" in outcome.out
    data_are_counted(outcome.out, training_set(tiny_faces))
    parameters_are_counted(outcome.out)
    assert train_identity(folder, *flags).status == 0
    assert train_identity(tmp_path / "plain", "--epochs", 1, "--backbone", SLIM).status == 0
    assert same_weights(folder / "iefp.pth", tmp_path / "plain" / "iefp.pth")  # as without the dry run
    (path,) = (folder / "checkpoints").glob("*.pth")
    for what, written in ((r"checkpoint .* 3 x", path), (r"weights in the published layout +1 x", folder / "iefp.pth")):
        shown = re.search(rf"{what} +([\d.]+) MB", outcome.out)
        assert float(shown[1]) * 1e6 == pytest.approx(written.stat().st_size, rel=0.01), what


def data_are_counted(out: str, folder: Path) -> None:
    assert "18 pictures of 6 identities, 3 to 3 of each" in out and "the age of 18 is known" in out
    pattern = FILENAME_PATTERNS["ms1mv3"]
    ages = [int(re.split(pattern.separators, path.name)[pattern.position]) for path in folder.glob("*/*.jpg")]
    young = sum(age <= 12 for age in ages)
    assert re.search(rf"^  0-12 +{young} +{100 * young / 18:.1f} %", out, re.MULTILINE)


def parameters_are_counted(out: str) -> None:
    model = IEFP(SLIM, 1, 6, age_backbone=TINY)
    counts = {
        "encoder": sum(p.numel() for n, p in model.backbone_id.named_parameters() if "spu" not in n),
        "purification unit": sum(p.numel() for p in model.backbone_id.spu.parameters()),
        "margin head": 6 * 512,
        "CLUB": sum(p.numel() for p in model.clubmi.parameters()),
        "age branch": sum(p.numel() for module in model.age_branch for p in module.parameters()),
    }
    for name, count in counts.items():
        what = "frozen" if name == "age branch" else "trained"
        assert re.search(rf"^  {name} +{count:,} .*{what}$", out, re.MULTILINE), name


def test_a_run_in_the_folder_is_left_as_it_is_and_its_step_is_told(train_identity, plain_run, tmp_path):
    shutil.copytree(plain_run, tmp_path / "run")
    before = files(tmp_path / "run")
    outcome = train_identity(tmp_path / "run", "--epochs", 1, "--dry-run")
    assert outcome.status == 0 and "3 steps are done: it would go on from there" in outcome.out
    after = files(tmp_path / "run")
    assert after.pop("dry_run.png")[:4] == b"\x89PNG" and after == before
    outcome = train_identity(tmp_path / "run", "--epochs", 1, "--learning-rate", 0.5, "--dry-run")
    assert outcome.status == 2 and "--learning-rate 0.02 -> 0.5" in outcome.err  # as the run itself would be refused


# ---------------------------------------------------------------------------------------------------------- the recipe


def every_setting_is_shown_and_those_that_are_not_published_have_a_star(out: str) -> None:
    config = load_script("train").TrainConfig()
    reply = {}
    for star, name in re.findall(r"^([* ]) --([a-z-]+) ", out, re.MULTILINE):
        reply[name.replace("-", "_")] = star
    assert set(reply) == set(vars(config)) - {"dry_run"}
    assert {name for name, star in reply.items() if star == "*"} == {
        "train_data", "run_folder", "age_weights", "backbone", "margin", "batch_size", "accumulation", "epochs",
        "learning_rate", "device", "workers", "log_every"}  # fmt: skip
    assert re.search(r"--margin +arcface +\(published: cosface\)", out)
    assert re.search(r"--margin-value +None -> 0.5$", out, re.MULTILINE)
    assert re.search(r"--age-cache +auto -> off$", out, re.MULTILINE)  # two epochs: it would not pay


def test_pictures_without_ages_are_counted_too():
    reply = dry_run.data_found(np.array([0, 0, 1]), np.array([-1, 2, -1]), 3)
    assert "3 pictures of 3 identities, 0 to 2 of each, 1 in the median" in reply
    assert "the age of 1 is known, of 2 it is not" in reply and "19-25  1  100.0 %" in reply


# ---------------------------------------------------------------------------------------------------------- the memory


def test_settings_and_the_memory_and_time_of_steps_that_are_made_are_printed(train_identity, tmp_path, monkeypatch):
    """Real pictures in the real batch, in micro-batches; the peak and the time are those of the steps."""
    train, passed = load_script("train"), []
    step = train.IdentityStage.step

    def note(self, batch):
        passed.append((len(batch.images), len(batch.micro_batches(self.config.accumulation))))
        return step(self, batch)

    monkeypatch.setattr(train.IdentityStage, "step", note)
    monkeypatch.setattr(dry_run, "peak_bytes", lambda device: 10**9 + 10**6 * len(passed))
    outcome = train_identity(tmp_path, *SHORT, "--margin", "arcface", "--accumulation", 3, "--dry-run")
    assert outcome.status == 0, outcome.err
    every_setting_is_shown_and_those_that_are_not_published_have_a_star(outcome.out)
    assert passed == [(6, 3)] * 4  # two say how long a step takes on a CPU, two are measured
    assert "memory, measured in two steps of 6 images on a process\n" in outcome.out
    assert "peak of the process, 4.00 MB of it in these steps: 1.00 GB; cpu has " in outcome.out
    assert re.search(r"time, from a step of 6 images; .*\n  input of a step +0\.\d{3} s\n", outcome.out)


def test_a_peak_in_a_smaller_batch_says_that_the_share_takes_more():
    measured = dry_run.Measured(8, dry_run.StepTime(1, 1, 1, 0), 2 * 10**9, 10**9)
    shown = dry_run.memory(measured, 512, torch.device("cpu"))
    assert "two steps of 8 images on a process; the share of 512 takes more\n" in shown
    assert "peak of the process, 1.00 GB of it in these steps: 2.00 GB" in shown


def take_memory() -> None:
    cpu = torch.device("cpu")
    before, resident = dry_run.peak_bytes(cpu), int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    taken = torch.ones(before - resident + 10**8, dtype=torch.uint8)  # bytes: beyond any peak that was
    assert taken[-1] == 1
    print("more by MB:", (dry_run.peak_bytes(cpu) - before) // 10**6)


def test_memory_that_is_taken_shows_in_the_peak():
    """In a process of its own: memory that other tests gave back would be used again."""
    ended = in_processes(1, take_memory)
    assert ended.statuses == [0] and 90 < int(ended.out.split("more by MB:")[1]) < 150, ended


def test_a_step_that_does_not_fit_is_one_sentence(train_identity, tmp_path, monkeypatch):
    def fail(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(load_script("train").IdentityStage, "step", fail)
    outcome = train_identity(tmp_path, *SHORT, "--dry-run")
    assert outcome.status == 2 and "a step of 6 images a process does not fit into the memory of cpu" in outcome.err
    assert "raise --accumulation, lower --batch-size or take more processes" in outcome.err


# ------------------------------------------------------------------------------------------------------------ the disk


@pytest.fixture
def disks(monkeypatch, tmp_path):
    """Folders a and b on one disk of 71 GB, c on another of 50 GB."""
    for name in "abc":
        (tmp_path / name).mkdir()
    free = {"a": 71e9, "b": 71e9, "c": 50e9}
    monkeypatch.setattr(disk_usage, "disk_of", lambda folder: free[folder.name])
    monkeypatch.setattr(
        disk_usage.shutil,
        "disk_usage",
        lambda folder: SimpleNamespace(free=free[folder.relative_to(tmp_path).parts[0]]),
    )
    return tmp_path


def test_what_goes_to_one_disk_is_added_up(disks):
    """7e: two files of 43 GB each do not fit on 71 GB, whichever folders they go to."""
    reply = disk_usage.disk([disk_usage.Stored("x", disks / name / "new", 43e9) for name in "abc"]).splitlines()
    assert (
        reply[-2] == f"  disk of {disks / 'a'}, {disks / 'b'}: 86.00 GB needed at most, 71.00 GB free: THERE IS NO ROOM"
    )
    assert reply[-1] == f"  disk of {disks / 'c'}: 43.00 GB needed at most, 50.00 GB free"


def test_what_is_there_is_not_needed_again(disks):
    """7e: a cache that is there takes nothing more; what is written beside an old file takes one file more."""
    kinds = [
        disk_usage.Stored("cache", disks / "a", 60e9, there=45e9, in_place=True),
        disk_usage.Stored("checkpoint", disks / "a", 10e9, count=4, there=30e9),
        disk_usage.Stored("weights", disks / "a", 2e9, count=1, there=2e9),
    ]
    assert [stored.more for stored in kinds] == [15e9, 10e9, 2e9]
    assert "27.00 GB needed at most beside 77.00 GB that is there, 71.00 GB free" in disk_usage.disk(kinds)


def test_a_file_with_two_names_is_there_once(tmp_path):
    """7e: best.pth is a link to a checkpoint."""
    (tmp_path / "a").write_bytes(bytes(100_000))
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    names = [tmp_path / name for name in "abc"]
    assert 100_000 <= disk_usage.bytes_on_disk(names) == disk_usage.bytes_on_disk(names[:1]) < 150_000


def test_rows_that_other_processes_hold_are_written_too():
    """7e: with --sharded-classes the table had one process's rows alone."""
    stage = SimpleNamespace(model=SimpleNamespace(margin_fc=CosFace(6, own=range(2))))
    assert disk_usage.rows_of_others(SimpleNamespace(stage=stage)) == 4 * 512 * 4


def test_a_run_that_is_done_has_its_files_and_its_cache(train_identity, tmp_path):
    """7e: caches and checkpoints that are there were counted again."""
    flags = ("--epochs", 3, "--cache-folder", tmp_path / "cache")
    before = train_identity(tmp_path / "run", *flags, "--dry-run")
    assert train_identity(tmp_path / "run", *flags).status == 0
    after = train_identity(tmp_path / "run", *flags, "--dry-run")
    sizes = re.findall(r"(\d) x +([\d.]+) ([kM])B", before.out)
    sizes = [(int(count), float(number) * {"k": 1e3, "M": 1e6}[unit]) for count, number, unit in sizes]
    (_, checkpoint), (_, weights), (_, cache) = sizes[-3:]
    needed = [float(re.search(r"([\d.]+) MB needed at most", reply.out)[1]) * 1e6 for reply in (before, after)]
    assert needed[0] == pytest.approx(3 * checkpoint + weights + cache, rel=0.01)
    assert needed[1] == pytest.approx(checkpoint + weights, rel=0.01)
    assert "that is there" in after.out and "that is there" not in before.out


# ------------------------------------------------------------------------------------------------------------ the time


@pytest.mark.parametrize(
    ("keeps", "workers", "seconds"),
    [
        ("none", 0, (0, 10 * 5, 10 * 5)),  # 3 of input + 2 of network
        ("none", 4, (0, 10 * 3, 10 * 3)),  # the longer one
        ("off", 4, (0, 10 * 3, 10 * 3)),  # network and frozen branch take 3 too
        ("auto", 4, (0, 10 * 4, 10 * 3)),  # both views in the first epoch
        ("ahead", 0, (10 * 5, 10 * 5, 10 * 5)),
    ],
)
def test_the_time_of_a_run(keeps, workers, seconds):
    of_step = dry_run.StepTime(input=3.0, network=2.0, frozen=1.0, workers=workers)
    assert dry_run.run_seconds(of_step, 10, 3, keeps) == seconds
    whole = dry_run.in_words(seconds[0] + seconds[1] + 2 * seconds[2])
    assert f"the whole run, 3 epochs{' ' * 50}"[:24] in dry_run.times(of_step, 4, 8, 10, 3, keeps)
    assert whole in dry_run.times(of_step, 4, 8, 10, 3, keeps)


def test_a_large_batch_on_a_cpu_is_measured_by_a_smaller_one():
    assert dry_run.images_to_measure(512, 1, 0.1 * dry_run.SECONDS_A_STEP) == 8
    assert dry_run.images_to_measure(512, 1, 1000.0) == 4
    assert dry_run.images_to_measure(2, 1, 1000.0) == 2
    assert dry_run.images_to_measure(12, 1, 0.001 * dry_run.SECONDS_A_STEP) == 12
    assert dry_run.images_to_measure(96, 3, 0.03 * dry_run.SECONDS_A_STEP) == 3 * 8
    reply = dry_run.times(dry_run.StepTime(1, 1, 1, 0), 8, 512, 10, 25, "off")
    assert "from a step of 8 images, times 64 for the share of 512 (rather too high)" in reply


def test_the_loader_is_timed_beyond_what_it_had_ready(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: now[0])

    def stream():
        for number in range(1000):
            now[0] += 0.0 if number < 4 else 0.01  # four lie there
            yield number

    assert dry_run.seconds_a_batch(stream(), num_waiting=4) == pytest.approx(0.01)


# --------------------------------------------------------------------------------------------------------- the picture


def test_the_picture_shows_what_the_first_step_is_given(train_identity, tmp_path, monkeypatch):
    given, flags = [], ("--epochs", 1, "--batch-size", 12)  # two rows of the picture

    def note(self, batch):
        given.append(batch.images)
        raise KeyboardInterrupt

    assert train_identity(tmp_path, *flags, "--dry-run").status == 0
    monkeypatch.setattr(load_script("train").IdentityStage, "step", note)
    assert train_identity(tmp_path, *flags).status == 130
    with Image.open(tmp_path / "dry_run.png") as picture:
        sheet = np.array(picture)
    for number in range(12):
        left, top = MARGIN + number % 8 * (112 + MARGIN), MARGIN + TITLE_HEIGHT
        top += number // 8 * (112 + CAPTION_HEIGHT + MARGIN)
        face = (given[0][number] * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(sheet[top : top + 112, left : left + 112], face), number


def test_a_grid_of_one_picture_with_an_odd_name(tmp_path):
    draw_grid(tmp_path / "grid.png", "title", torch.zeros(1, 3, 112, 112), [("\x1b" + "n" * 90, "66+")])
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.height == MARGIN + TITLE_HEIGHT + 112 + CAPTION_HEIGHT + MARGIN


# ---------------------------------------------------------------------------------------------- other stages and ways


def test_stage_age_and_other_settings_are_shown_too(run_main, train_identity, tiny_faces, tmp_path):
    flags = ("--stage", "age", "--age-head", "years", "--train-data", training_set(tiny_faces), *SMALL,
             "--run-folder", tmp_path / "age", "--dry-run")  # fmt: skip
    outcome = run_main("train", *flags)
    assert outcome.status == 0 and "head for years" in outcome.out, outcome.err
    assert "margin head" not in outcome.out and "frozen age branch" not in outcome.out
    more = ("--accumulation", 3, "--ema-decay", 0.9, "--sharded-classes", "--class-sampling-rate", 0.5)
    outcome = train_identity(tmp_path / "run", *more, "--disentangle", "dal", "--epochs", 3, "--validate-every", 5,
                             "--validate-on", "fgnet", "--face-dataset", tiny_faces, "--dry-run")  # fmt: skip
    assert outcome.status == 0 and re.search(r"--disentangle-weight +None -> 0.1", outcome.out), outcome.err
    count = len(list((tiny_faces / "ID_processed_FGNET").glob("*/*.JPG")))
    assert f"validation on fgnet every 5 steps: {count} pictures" in outcome.out
    assert re.search(r"age features of both views +1 x +36.86 kB", outcome.out)


def dry_run_in_a_hurry(flags: list[str]) -> None:
    dry_run.INPUT_SECONDS, dry_run.SECONDS_A_STEP = HURRY
    run_script(lambda: load_script("train").train(parse_config(load_script("train").TrainConfig, flags)))


def test_two_processes_report_it_once(tiny_faces, age_weights, tmp_path):
    flags = [*identity_flags(tiny_faces, age_weights), "--run-folder", tmp_path / "run", *SHORT, "--dry-run"]
    ended = in_processes(2, dry_run_in_a_hurry, list(map(str, flags)))
    assert ended.statuses == [0, 0], ended.err
    assert ended.out.count("memory, measured") == 1 and "steps of 3 images on a process" in ended.out
    assert list(files(tmp_path / "run")) == ["dry_run.png"]
