"""data/ages/names.py: published names by rename, link and copy; stopped anywhere, it goes on or goes back."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from refusals import refused

from data.ages import names as age_names
from data.ages.names import Named, continue_names, place_with_ages, published_name, rename_with_ages, undo_names
from data.faces import index_identity_folders
from data.filenames import parse_age
from meta import FILENAME_PATTERNS, UserError

NAMES = ("0_0/05179510.jpg", "0_0/05179511.JPG", "0_1/b.c_d.png", "0_1/x_age_5.jpg", "0_2/z.jpg")
AGES = (39, 0, 120, 5, 7)
PUBLISHED = ("0_0/05179510_age_39.jpg", "0_0/05179511_age_0.JPG", "0_1/b-c-d_age_120.png", "0_1/x_age_5.jpg",
             "0_2/z_age_7.jpg")  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in NAMES:
        path = tmp_path / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"picture {name}")
    (tmp_path / "faces" / "0_0" / "notes.txt").write_text("no picture")
    (tmp_path / "faces" / "0_0" / ".hidden.jpg").write_text("none either")
    return tmp_path / "faces"


@pytest.fixture
def undo_file(tmp_path) -> Path:
    return tmp_path / "undo" / "faces.undo.jsonl"


def index_of(folder):
    return index_identity_folders(folder, None)


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


ADDED = {"0_0/notes.txt": "no picture", "0_0/.hidden.jpg": "none either"}
BEFORE = {name: f"picture {name}" for name in NAMES} | ADDED
AFTER = {new: f"picture {old}" for old, new in zip(NAMES, PUBLISHED, strict=True)} | ADDED


def rename(folder, undo_file, ages=AGES, **how) -> Named:
    return rename_with_ages(index_of(folder), np.array(ages, np.int16), undo_file, **how)


@example(stem=".", age=0, extension=".jpg")
@given(
    stem=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1),
    age=st.integers(0, 120),
    extension=st.sampled_from([".jpg", ".JPEG", ".png"]),
)
def test_whatever_a_picture_is_called_its_published_name_holds_the_age(stem, age, extension):
    try:
        name = published_name(f"0_0/{stem}{extension}", age)
    except UserError:
        assert "_age_" in stem
        return
    assert parse_age(name, FILENAME_PATTERNS["ms1mv3"]) == age
    assert name.startswith("0_0/") and name.endswith(extension) and name.count("/") == 1
    assert published_name(name, age) == name


def test_renaming_gives_every_picture_its_name_and_undoing_takes_it_back(folder, undo_file):
    assert rename(folder, undo_file, dry_run=True) == Named(4, 1)
    assert tree(folder) == BEFORE and not undo_file.exists()
    assert rename(folder, undo_file) == Named(done=4, already=1)
    assert tree(folder) == AFTER
    assert index_identity_folders(folder, FILENAME_PATTERNS["ms1mv3"]).ages.tolist() == list(AGES)
    content = undo_file.read_text()
    with pytest.raises(UserError, match="of an earlier renaming exists"):  # it is never overwritten
        rename(folder, undo_file)
    assert rename(folder, undo_file.with_name("other")) == Named(
        done=0, already=5
    )  # all have their names: no undo file
    assert undo_names(undo_file, dry_run=True) == Named(4, 0)
    assert tree(folder) == AFTER and undo_file.read_text() == content
    assert undo_names(undo_file) == Named(done=4, already=0)
    assert tree(folder) == BEFORE
    assert os.listdir(undo_file.parent) == ["faces.undo.jsonl.undone"]
    assert rename(folder, undo_file) == Named(done=4, already=1)  # once more, and one picture goes before it is undone
    (folder / PUBLISHED[0]).unlink()
    assert undo_names(undo_file) == Named(done=3, already=0, missing=1)
    assert tree(folder) == {name: text for name, text in BEFORE.items() if name != NAMES[0]}
    assert sorted(os.listdir(undo_file.parent)) == ["faces.undo.jsonl.undone", "faces.undo.jsonl.undone1"]


def test_the_undo_file_is_on_the_disk_before_the_first_rename(folder, undo_file, monkeypatch):
    events = []
    real_rename, real_fsync = os.rename, os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (events.append("fsync"), real_fsync(number)))

    def watched(old, new):
        events.append("rename")
        lines = [json.loads(line) for line in undo_file.read_text().splitlines()]
        assert len(lines) == 5 and lines[0]["num_names"] == 4
        assert {"old": os.path.relpath(old, folder), "new": os.path.relpath(new, folder)} in lines
        real_rename(old, new)

    monkeypatch.setattr(os, "rename", watched)
    rename(folder, undo_file)
    assert events == ["fsync", "fsync"] + ["rename"] * 4  # of the file, and of the folder that it stands in


@pytest.mark.parametrize("stopped_after", [0, 2, 3])
@pytest.mark.parametrize("then", ["go on", "go back", "go back, stopped again"])
def test_stopped_anywhere_it_goes_on_or_goes_back(folder, undo_file, monkeypatch, stopped_after, then):
    def stopping_after(count):
        real_rename, left = os.rename, [count]

        def stopping(*names):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            real_rename(*names)

        return stopping

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "rename", stopping_after(stopped_after))
        rename(folder, undo_file)
    assert sum(name in NAMES for name in tree(folder)) == 5 - stopped_after
    if then == "go on":
        assert continue_names(undo_file) == Named(4 - stopped_after, stopped_after)
        assert tree(folder) == AFTER
        assert continue_names(undo_file) == Named(0, 4)
        return
    if then == "go back, stopped again":
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(os, "rename", stopping_after(0))
            undo_names(undo_file)
    assert undo_names(undo_file) == Named(stopped_after, 4 - stopped_after)
    assert tree(folder) == BEFORE


def test_stopped_while_the_undo_file_is_written_nothing_happened(folder, undo_file, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        rename(folder, undo_file)
    assert tree(folder) == BEFORE
    assert os.listdir(undo_file.parent) == []


def test_a_name_that_is_taken_or_says_another_age_is_refused_before_anything_is_renamed(folder, undo_file):
    (folder / "0_2" / "z_age_7.jpg").write_text("there already")
    with pytest.raises(UserError, match=r"0_2/z.jpg' would become 'z_age_7.jpg', and there is such a file already"):
        rename(folder, undo_file, (*AGES, 7))
    (folder / "0_2" / "z_age_7.jpg").unlink()
    refused(rename, folder, undo_file, (39, 0, 120, 6, 7), match="'0_1/x_age_5.jpg' says the age 5 in its name, and 6")
    assert tree(folder) == BEFORE and not undo_file.exists()


def test_two_pictures_that_would_get_one_name_are_refused(folder, undo_file):
    (folder / "0_1" / "b-c.d.png").write_text("almost the same name")
    ages = np.array([39, 0, 120, 120, 5, 7])
    for action in (
        lambda: rename_with_ages(index_of(folder), ages, undo_file),
        lambda: place_with_ages(index_of(folder), ages, folder.parent / "new", "copy"),
    ):
        refused(action, match="would .*become 'b-c-d_age_120.png'")
    assert not undo_file.exists() and not (folder.parent / "new").exists()


def test_undoing_overwrites_nothing(folder, undo_file):
    rename(folder, undo_file)
    (folder / NAMES[2]).write_text("new, of the old name")
    refused(undo_names, undo_file, match="both exist.*move one of them away and start again")
    assert (folder / NAMES[2]).read_text() == "new, of the old name"
    (folder / NAMES[2]).unlink()
    assert undo_names(undo_file).missing == 0
    assert tree(folder) == BEFORE


def test_names_that_are_not_utf8_and_names_with_line_breaks_come_back(tmp_path, undo_file):
    folder = os.path.join(os.fsencode(tmp_path), b"faces")
    names = sorted([b"Jos\xe9.jpg", b"a\nb.jpg", b'c"d.jpg', "\u2028.jpg".encode()])
    os.makedirs(os.path.join(folder, b"p\xe9"))
    for name in names:
        open(os.path.join(folder, b"p\xe9", name), "wb").close()
    assert rename(tmp_path / "faces", undo_file, [1, 2, 3, 4]).done == 4
    assert not set(names) & set(os.listdir(os.path.join(folder, b"p\xe9")))
    assert undo_names(undo_file).done == 4
    assert sorted(os.listdir(os.path.join(folder, b"p\xe9"))) == names


FIRST = {"format": "names with ages 1", "root": "ROOT", "num_names": 1}
HOSTILE_LINES = {
    "up": {"old": "../secret.jpg", "new": "../secret_age_3.jpg"},
    "up inside": {"old": "a/../../secret.jpg", "new": "a/../../secret_age_3.jpg"},
    "absolute": {"old": "/etc/passwd.jpg", "new": "/etc/passwd_age_3.jpg"},
    "another folder": {"old": "0_0/a.jpg", "new": "0_1/a_age_3.jpg"},
    "another name": {"old": "0_0/a.jpg", "new": "0_0/b_age_3.jpg"},
    "no age": {"old": "0_0/a.jpg", "new": "0_0/.bashrc"},
    "an impossible age": {"old": "0_0/a.jpg", "new": "0_0/a_age_300.jpg"},
    "the same": {"old": "0_0/a_age_3.jpg", "new": "0_0/a_age_3.jpg"},
    "a zero byte": {"old": "0_0/a\0.jpg", "new": "0_0/a\0_age_3.jpg"},
    "a surrogate": {"old": "0_0/\ud812.jpg", "new": "0_0/\ud812_age_3.jpg"},
    "a number": {"old": 3, "new": "0_0/b_age_3.jpg"}, "half": {"old": "0_0/a.jpg"},
    "no object": ["0_0/a.jpg", "0_0/a_age_3.jpg"], "no JSON": "half a line",
}  # fmt: skip


def written(undo_file: Path, root: Path, first: object, *lines: object) -> Path:
    undo_file.parent.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in (first, *lines))
    undo_file.write_text(text.replace("ROOT", str(root)))
    return undo_file


@pytest.mark.parametrize("case", HOSTILE_LINES)
def test_hostile_lines_are_refused_before_anything_is_renamed(folder, undo_file, case):
    (folder.parent / "secret.jpg").write_text("")
    good = {"old": NAMES[0], "new": PUBLISHED[0]}
    path = written(undo_file, folder, {**FIRST, "num_names": 2}, good, HOSTILE_LINES[case])
    for action in (continue_names, undo_names):
        refused(action, path, match=r"undo.jsonl', line 3, reads .* is expected")
    assert tree(folder) == BEFORE and (folder.parent / "secret.jpg").exists()


@pytest.mark.parametrize(
    "first",
    [{}, [], 5, {**FIRST, "format": "other"}, {**FIRST, "root": "faces"}, {**FIRST, "root": 3},
     {**FIRST, "root": "/a\0b"}, {**FIRST, "num_names": "1"}, {**FIRST, "num_names": True}],
)  # fmt: skip
def test_files_that_are_no_undo_files_are_refused(folder, undo_file, first):
    with pytest.raises(UserError, match="undo.jsonl' is no undo file"):
        undo_names(written(undo_file, folder, first, {"old": NAMES[0], "new": PUBLISHED[0]}))


def test_an_undo_file_cut_off_or_of_a_folder_that_went_is_refused(folder, undo_file):
    refused(undo_names, written(undo_file, folder, FIRST), match="has 0 names and says 1 in its first line")
    line = {"old": NAMES[0], "new": PUBLISHED[0]}
    with pytest.raises(UserError, match=r"gone' that the undo file .* is not there: put it back"):
        undo_names(written(undo_file, folder / "gone", FIRST, line))
    refused(undo_names, undo_file.with_name("nowhere"), match="undo file .*cannot be read")
    undo_file.write_text("")
    refused(undo_names, undo_file, match="is no undo file")


def place(folder, how, ages=AGES, output=None, **more) -> Named:
    return place_with_ages(index_of(folder), np.array(ages), output or folder.parent / "new", how, **more)


PLACED = {new: f"picture {old}" for old, new in zip(NAMES, PUBLISHED, strict=True)}


@pytest.mark.parametrize("how", ["link", "copy"])
def test_a_new_folder_gets_the_published_names_and_the_old_one_stays(folder, how):
    assert place(folder, how, dry_run=True) == Named(5, 0)
    assert not (folder.parent / "new").exists()
    assert place(folder, how) == Named(5, 0)
    assert tree(folder.parent / "new") == PLACED and tree(folder) == BEFORE
    same = [
        os.path.samefile(folder / old, folder.parent / "new" / new) for old, new in zip(NAMES, PUBLISHED, strict=True)
    ]
    assert same == [how == "link"] * 5
    assert place(folder, how) == place(folder, how, dry_run=True) == Named(0, 5)


@pytest.mark.parametrize("how", ["link", "copy"])
def test_stopped_halfway_it_goes_on(folder, monkeypatch, how):
    def stopped(source, target):
        if how == "copy":  # of open files
            target.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(*((os, "link") if how == "link" else (age_names.shutil, "copyfileobj")), stopped)
        place(folder, how)
    assert tree(folder.parent / "new") == {}
    real = getattr(age_names, f"_{how}")

    def stopping(source, target):
        if source.endswith(NAMES[2]):
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(age_names, f"_{how}", stopping)
        place(folder, how)
    assert place(folder, how) == Named(3, 2)
    assert tree(folder.parent / "new") == PLACED


@pytest.mark.parametrize("how", ["link", "copy"])
def test_a_file_that_is_another_one_is_never_overwritten(folder, how):
    target = folder.parent / "new" / PUBLISHED[0]
    target.parent.mkdir(parents=True)
    for make in (lambda: target.write_text("mine"), lambda: target.symlink_to("nowhere")):
        make()
        refused(place, folder, how, match="_age_39.jpg' exists and is not")
        target.unlink()


def test_a_folder_with_other_things_in_it_is_refused(folder):
    new = folder.parent / "new"
    place(folder, "copy")
    with pytest.raises(UserError, match="holds 'z_age_7.jpg', which is none of these pictures with these ages"):
        place(folder, "copy", (39, 0, 120, 5, 8))  # each picture would be there twice, with two ages
    assert tree(new) == PLACED
    (new / "stranger").mkdir()
    refused(place, folder, "copy", match="holds 'stranger'")
    refused(place, folder, "copy", output=folder.parent / "new" / PUBLISHED[0], match="is no folder")


def test_an_output_inside_the_folder_of_the_pictures_is_refused(folder):
    (folder.parent / "other way").symlink_to(folder)
    for output in (folder, folder / "new", folder.parent / "other way" / "new"):
        refused(place, folder, "copy", output=output, match="lies in the folder of the pictures")
    assert tree(folder) == BEFORE


def test_symbolic_links_are_linked_and_copied_as_what_they_lead_to(folder):
    (folder / NAMES[4]).unlink()
    (folder / NAMES[4]).symlink_to("../0_0/05179510.jpg")
    for how in ("link", "copy"):
        output = folder.parent / how
        assert place(folder, how, output=output) == Named(5, 0)
        assert not (output / PUBLISHED[4]).is_symlink()
        assert (output / PUBLISHED[4]).read_text() == f"picture {NAMES[0]}"
        assert place(folder, how, output=output) == Named(0, 5)


def test_what_the_file_system_refuses_is_a_sentence_and_can_be_gone_on_with(folder, undo_file, monkeypatch):
    def refusing(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refusing)
        patched.setattr(os, "link", refusing)
        refused(rename, folder, undo_file, match="_age_39.jpg' cannot be made, Invalid cross-device link")
        with pytest.raises(
            UserError, match="cannot be made, .*hard links need one file system for both, copies do not"
        ):
            place(folder, "link")
    assert continue_names(undo_file).done == 4
