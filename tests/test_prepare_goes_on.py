"""prepare.py stopped and started again: what is half-made is kept, and used for the very files that it was made of."""

import io
import itertools
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from raw_releases import FGNET_RESULT, SIZE, fgnet, interrupt, names_in  # noqa: F401 (fixtures)

from data.ages import names as age_names
from data.faces import index_identity_folders
from data.record_packing import pack_folder, unpack_record_file
from data.records import index_record_file
from data.releases.aligned_folders import MARKER, Written, write_plan
from data.releases.fgnet import plan_fgnet
from evaluation import age_labelling
from meta import BENCHMARKS, UserError

NUM_PICTURES = 6
FGNET_FOLDER = BENCHMARKS["fgnet"].folders[0]


@pytest.fixture
def people(tmp_path) -> Path:
    """Six grey pictures with FG-NET's names."""
    for i in range(NUM_PICTURES):
        write_grey(tmp_path / "people" / f"{i // 3:03d}" / f"{i // 3:03d}A{20 + i}.png", 10 * i)
    return tmp_path / "people"


def write_grey(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (112, 112), (grey, grey, grey)).save(path)


def write_again(path: Path, content: bytes) -> None:
    """Other content under the same name, some time later."""
    later = path.stat().st_mtime_ns + 1_000_000_000
    path.write_bytes(content)
    os.utime(path, ns=(later, later))


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All files with their content, and all folders, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def shown(monkeypatch):
    """Call it with a number of batches after which to interrupt; gives the positions of pictures that are shown."""
    batches = age_labelling.batches

    def install(stop_after: int | None = None) -> list[int]:
        positions: list[int] = []

        def watched(loader):
            for count, batch in enumerate(batches(loader)):
                if count == stop_after:
                    raise KeyboardInterrupt
                positions.extend(batch.indices.tolist())
                yield batch

        monkeypatch.setattr(age_labelling, "batches", watched)
        return positions

    return install


@pytest.fixture
def ages(run_main, people, age_weights, tmp_path):
    estimate = ("--weights", age_weights, "--batch-size", 1, "--workers", 0, "--device", "cpu")
    table = tmp_path / "table.csv"
    names = sorted(path.relative_to(people).as_posix() for path in people.rglob("*.png"))
    table.write_text("".join(f"{name},{30 + i}\n" for i, name in enumerate(names)))

    def run(source: str, *flags: object):
        sources = {"weights": estimate, "table": ("--from-table", table), "names": ("--from-names", "fgnet")}
        return run_main("prepare", "ages", "--data", people, *sources[source], *flags)

    return run


@pytest.mark.parametrize("place", ["rename", "output"])
def test_half_made_ages_outlive_dry_runs_and_histograms(ages, shown, tmp_path, place):
    """5b: neither a dry run nor a run with only --histogram deletes the half-made result of ages --weights."""
    target = ("--rename",) if place == "rename" else ("--output", tmp_path / "ages.csv")
    shown(stop_after=4)
    assert ages("weights", *target).status == 130
    before = snapshot(tmp_path)
    (part,) = (name for name in before if name.endswith(".ages.part"))
    for source in ("names", "table", "weights"):
        assert ages(source, *target, "--dry-run").status == 0
        assert snapshot(tmp_path) == before
    for source in ("table", "names"):
        outcome = ages(source, "--histogram", tmp_path / "ages.png", "--force")
        assert outcome.status == 0, outcome.err
        after = snapshot(tmp_path)
        assert after.pop("ages.png")[:4] == b"\x89PNG"
        kept, expected = ({name: content for name, content in files.items() if ".iefp" not in name}
                          for files in (after, before))  # fmt: skip
        assert kept == expected
    positions = shown()
    assert ages("weights", *target).status == 0
    assert positions == [4, 5]  # it went on
    assert not (tmp_path / part).exists()


def test_the_ages_of_a_histogram_are_kept_for_a_run_that_stores_them(ages, shown, people, tmp_path):
    """5b: only the run that stored the ages lets go of them."""
    shown()
    outcome = ages("weights", "--histogram", tmp_path / "ages.png")
    part = tmp_path / "people.ages.part"
    assert outcome.status == 0 and part.exists() and str(part) in outcome.out
    positions = shown()
    assert ages("weights", "--rename").status == 0
    assert positions == [] and not part.exists()
    assert all("_age_" in name for name in names_in(people))


def test_a_half_made_rename_outlives_dry_runs_and_histograms(ages, people, tmp_path, monkeypatch):
    """5b: nothing but the same --rename, or --undo, touches what an interrupted --rename has left."""
    rename, count = os.rename, itertools.count()

    def interrupted(*names):
        if next(count) == 2:
            raise KeyboardInterrupt
        rename(*names)

    monkeypatch.setattr(age_names.os, "rename", interrupted)
    assert ages("table", "--rename").status == 130
    monkeypatch.undo()
    before = snapshot(tmp_path)
    assert "people.undo.jsonl" in before
    assert ages("names", "--rename", "--dry-run").status == 2
    assert ages("names", "--histogram", tmp_path / "h.png").status == 2  # two names are of another pattern by now
    assert ages("weights", "--histogram", tmp_path / "h.png", "--dry-run").status == 0
    assert snapshot(tmp_path) == before
    outcome = ages("table", "--rename")
    assert outcome.status == 0 and "4 got their names, 2 had them" in outcome.out


def test_a_rename_that_goes_on_leaves_the_ages_of_another_run_alone(ages, shown, people, tmp_path, monkeypatch):
    """5b: the rest of a --rename by a table does not delete ages that are being estimated."""
    shown(stop_after=4)
    assert ages("weights", "--rename").status == 130
    monkeypatch.setattr(age_names.os, "rename", interrupt_now)
    assert ages("table", "--rename").status == 130
    monkeypatch.undo()
    assert ages("table", "--rename").status == 0
    assert (tmp_path / "people.ages.part").exists()


def interrupt_now(*_, **__):
    raise KeyboardInterrupt


def test_a_dry_run_writes_nothing_at_all(run_main, people, tmp_path):
    """5b: with --dry-run not even the list of pictures is kept."""
    pack_folder(index_identity_folders(people, None), tmp_path / "train.rec")
    before = snapshot(tmp_path)
    for command, *flags in (
        ("ages", "--data", people, "--from-names", "fgnet", "--output", tmp_path / "ages.csv"),
        ("pack", "--data", people, "--output", tmp_path / "new" / "train.rec"),
        ("unpack", "--records", tmp_path / "train.rec", "--output", tmp_path / "unpacked"),
    ):
        outcome = run_main("prepare", command, *flags, "--dry-run")
        assert outcome.status == 0 and "kept" not in outcome.out, outcome.err
        assert snapshot(tmp_path) == before


def test_ages_of_a_picture_that_was_replaced_are_estimated_anew(ages, shown, people, tmp_path):
    """3b: half-made ages hold for the pictures' sizes and times, not for their names alone.

    A picture whose size and time can't be seen is a broken picture, no traceback.
    """
    (people / "001" / "001A99.png").symlink_to("nowhere")
    flags = ("--output", tmp_path / "ages.csv", "--on-bad-image", "skip")
    shown(stop_after=4)
    assert ages("weights", *flags).status == 130
    positions = shown(stop_after=1)
    assert ages("weights", *flags).status == 130 and positions == [4]  # it goes on
    write_grey(tmp_path / "other.png", 77)
    write_again(people / "000" / "000A20.png", (tmp_path / "other.png").read_bytes())
    positions = shown()
    outcome = ages("weights", *flags)
    assert outcome.status == 0 and "other weights or other pictures" in outcome.out
    assert "001A99.png': No such file" in outcome.err and positions[:6] == [0, 1, 2, 3, 4, 5]


def jpeg(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (SIZE, SIZE), grey).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def unfinished(fgnet, tmp_path, interrupt) -> Path:  # noqa: F811
    """The folder of FG-NET's raw pictures, four of which were aligned before an interruption."""
    interrupt(4)
    with pytest.raises(KeyboardInterrupt):
        write_plan(plan_fgnet(fgnet), tmp_path / "out")
    interrupt(None)
    return fgnet / "FGNET" / "Images"


def finish(raw: Path, tmp_path: Path, **how) -> Written:
    """Goes on with unfinished work, whose result has to be that of work begun now."""
    written = write_plan(plan_fgnet(raw.parent.parent), tmp_path / "out", **how)
    fresh = write_plan(plan_fgnet(raw.parent.parent), tmp_path / "fresh", **how)
    ours, theirs = (
        {name: (one.folder / name).read_bytes() for name in names_in(one.folder)} for one in (written, fresh)
    )
    assert ours == theirs
    assert written.left_out == fresh.left_out and fresh.num_kept == 0
    return written


def test_a_picture_replaced_while_its_folder_is_unfinished_is_aligned_anew(unfinished, tmp_path):
    """3b: unfinished work keeps what was made of the files of this size and time, and makes the rest anew."""
    write_again(unfinished / "001A02.JPG", jpeg(200))
    source = unfinished / "001A43a.JPG"
    time = source.stat().st_mtime_ns
    source.write_bytes(jpeg(90))
    os.utime(source, ns=(time, time))  # as archives and copies give it back: only its size is another
    assert finish(unfinished, tmp_path).num_kept == 2


def test_a_picture_replaced_by_a_broken_one_is_left_out(unfinished, tmp_path):
    """3b: where the new picture can't be aligned, the old one's face does not stay in its place."""
    write_again(unfinished / "001A02.JPG", b"no picture")
    (unfinished / "001A43a.JPG").unlink()
    (unfinished / "001A43a.JPG").symlink_to("nowhere")
    written = finish(unfinished, tmp_path, allow_missing=True)
    assert (written.num_kept, len(written.left_out)) == (2, 2)
    assert not (written.folder / FGNET_RESULT[0]).exists()


def test_unfinished_work_whose_notes_were_cut_off_loses_that_picture_alone(unfinished, tmp_path):
    """3b: what a kill has cut off, or what is no note, counts as not done.

    Without notes, as the version before left its work, all is done anew.
    """
    (partial,) = (tmp_path / "out").glob(".*.unfinished-*")
    (notes,) = partial.glob(f"{MARKER}*")
    shutil.copytree(tmp_path / "out", tmp_path / "before" / "out")
    next((tmp_path / "before" / "out" / partial.name).glob(f"{MARKER}*")).unlink()
    assert finish(unfinished, tmp_path / "before").num_kept == 0
    notes.write_text(notes.read_text()[:-9] + '\n5\n[[], 1, 2]\n["a", 1]\n')
    assert write_plan(plan_fgnet(unfinished.parent.parent), tmp_path / "out").num_kept == 3


def test_a_finished_folder_of_replaced_pictures_is_refused_and_made_anew_by_force(fgnet, tmp_path, run_main):  # noqa: F811
    """3b: "there already" is said only of pictures that were made of the files as they are now."""
    flags = ("align-fgnet", "--raw", fgnet, "--output", tmp_path / "out", "--workers", 1)
    assert run_main("prepare", *flags).status == 0
    again = run_main("prepare", *flags)
    assert again.status == 0 and "of which 6 were there" in again.out
    source = fgnet / "FGNET" / "Images" / "001A02.JPG"
    write_again(source, jpeg(200))
    refused = run_main("prepare", *flags)
    assert refused.status == 2 and "1 of its pictures were made when their sources had another size" in refused.err
    assert str(source) in refused.err and "--force" in refused.err
    assert run_main("prepare", *flags, "--force").status == 0
    with Image.open(tmp_path / "out" / FGNET_FOLDER / FGNET_RESULT[0]) as picture:
        assert picture.convert("L").getpixel((56, 56)) == 200
    assert run_main("prepare", *flags).status == 0
    (notes,) = (tmp_path / "out" / FGNET_FOLDER).glob(f"{MARKER}*")
    notes.write_text("")  # as the version before left it
    old = run_main("prepare", *flags)
    assert old.status == 2 and "a version that did not note these" in old.err


def test_unpacking_goes_on_only_with_the_record_file_that_it_was_begun_with(people, tmp_path):
    """3b: a record file replaced by another of the same layout does not leave its old pictures in the folder."""
    records = tmp_path / "train.rec"
    pack_folder(index_identity_folders(people, None), records)
    assert unpack_record_file(index_record_file(records), tmp_path / "out", False)[:2] == (NUM_PICTURES, 0)
    assert unpack_record_file(index_record_file(records), tmp_path / "out", False)[:2] == (0, NUM_PICTURES)
    content = bytearray(records.read_bytes())
    first = index_record_file(records)
    place = content.index(first.read(0)) + len(first.read(0)) - 1
    content[place] ^= 1
    write_again(records, bytes(content))
    with pytest.raises(UserError, match=r"was not begun with '.*train\.rec' as it is now .*: give a new folder"):
        unpack_record_file(index_record_file(records), tmp_path / "out", False)
