"""data/index_cache.py: a kept index is the index, or is not used; a path is opened as what it is."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refused

from data import index_cache
from data.faces import FaceIndex, index_identity_folders
from data.index_cache import CACHE_FOLDER, open_index
from data.record_packing import pack_folder
from data.records import RecordIndex, index_record_file
from meta import FILENAME_PATTERNS, UserError

MS1MV3 = FILENAME_PATTERNS["ms1mv3"]
LONG_AGO = 1_600_000_000  # seconds; what changed just now is not kept
SMALLEST_JPEG = bytes.fromhex("ffd8ff")


def add(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SMALLEST_JPEG)


def make_old(*paths):
    for path in paths:
        os.utime(path, (LONG_AGO, LONG_AGO))


def make_folders_old(root):
    make_old(*(path for path in root.iterdir() if path.is_dir() and not path.is_symlink()))


@pytest.fixture
def root(tmp_path):
    """Three identities, changed long ago; one name that is no UTF-8."""
    root = tmp_path / "faces"
    add(root, "b/1_age_70.jpg", "b/0_age_12.jpg", "a/9_age_13.png", "Zoë/2_age_30.jpg")
    os.mkdir(os.path.join(os.fsencode(root), b"Jos\xe9"))
    Path(os.fsdecode(os.path.join(os.fsencode(root), b"Jos\xe9", b"\xfc_age_5.jpg"))).write_bytes(SMALLEST_JPEG)
    make_folders_old(root)
    return root


class Reports(list):
    def __call__(self, sentence):
        assert "\n" not in sentence
        assert sentence.endswith(".")
        self.append(sentence)


class Listing:
    """A progress that counts how often something was listed."""

    def __init__(self):
        self.count = 0

    def __call__(self, items, total, what):
        self.count += 1
        yield from items


def same(ours, theirs):
    assert type(ours) is type(theirs)
    for name, value in vars(theirs).items():
        mine = getattr(ours, name)
        if isinstance(value, np.ndarray):
            assert (mine.dtype, mine.tolist()) == (value.dtype, value.tolist()), name
            assert mine.flags.writeable
        elif not name.startswith("_"):
            assert mine == value, name
    assert ours.fingerprint() == theirs.fingerprint()
    return True


def opened(path, pattern=MS1MV3, **how):
    """(index, whether it was listed, sentences)"""
    listing, reports = Listing(), Reports()
    index = open_index(path, pattern, report=reports, progress=listing, **how)
    return index, listing.count > 0, reports


def kept_files(root):
    return sorted(os.listdir(root.parent / CACHE_FOLDER))


def test_a_kept_index_of_folders_is_the_index_without_listing_again(root):
    plain = index_identity_folders(root, MS1MV3)
    for expected in (True, False, False):
        index, listed, reports = opened(root)
        assert same(index, plain)
        assert (listed, reports) == (expected, [])
    assert kept_files(root) == ["faces.ms1mv3.npz"]
    assert [index.path(i) for i in range(5)] == [plain.path(i) for i in range(5)]
    assert same(pickle.loads(pickle.dumps(index)), plain)


def test_patterns_are_kept_apart(root):
    assert opened(root)[0].ages.tolist() == index_identity_folders(root, MS1MV3).ages.tolist()
    assert opened(root, None)[0].ages is None
    assert opened(root, None)[1] is opened(root)[1] is False
    assert kept_files(root) == ["faces.ms1mv3.npz", "faces.npz"]
    os.replace(root.parent / CACHE_FOLDER / "faces.npz", root.parent / CACHE_FOLDER / "faces.ms1mv3.npz")
    index, listed, reports = opened(root)
    assert (index.ages is not None, listed, len(reports)) == (True, True, 1)


@pytest.fixture
def packed(root):
    """A record file of the folder's faces, all alike, written long ago."""
    index, path = index_identity_folders(root, MS1MV3), root.parent / "records" / "train.rec"
    for i in range(len(index)):
        Image.new("RGB", (112, 112)).save(index.path(i), "JPEG")
    pack_folder(index, path)
    make_old(path, path.with_suffix(".idx"))
    return path


@pytest.mark.parametrize("with_idx", [True, False])
def test_a_kept_index_of_records_is_the_index_without_reading_again(packed, with_idx):
    if not with_idx:
        packed.with_suffix(".idx").unlink()
    plain = index_record_file(packed)
    for expected in (True, False):
        for given in (packed, packed.parent, str(packed)):
            index, listed, reports = opened(given)
            assert same(index, plain)
            assert (listed, reports) == (expected and given is packed, [])
    assert index.read(2) == plain.read(2)
    assert kept_files(packed) == ["train.rec.npz"]


CHANGES = {
    "a picture more": lambda root: add(root, "a/10_age_14.jpg"),
    "a picture less": lambda root: (root / "b" / "1_age_70.jpg").unlink(),
    "a picture renamed": lambda root: (root / "b" / "1_age_70.jpg").rename(root / "b" / "1_age_71.jpg"),
    "an identity more": lambda root: add(root, "c/10_age_14.jpg"),
    "an identity renamed": lambda root: (root / "a").rename(root / "aa"),
    "an identity hidden": lambda root: (root / "a").rename(root / ".a"),
    "an identity linked": lambda root: (root / "linked").symlink_to(root / "a"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_listed_again_with_one_sentence(root, change):
    before = opened(root)[0]
    times = {path: path.stat().st_mtime_ns for path in root.iterdir()}
    CHANGES[change](root)
    for path in root.iterdir():  # changed long ago too, but not when it was before
        if not path.is_symlink() and times.get(path) != path.stat().st_mtime_ns:
            os.utime(path, (LONG_AGO + 60, LONG_AGO + 60))
    index, listed, reports = opened(root)
    assert same(index, index_identity_folders(root, MS1MV3))
    assert listed
    assert index.fingerprint() != before.fingerprint()
    (sentence,) = reports
    assert "out of date" in sentence
    assert "faces.ms1mv3.npz" in sentence
    assert opened(root)[1:] == (False, [])


def test_what_changed_within_two_seconds_is_not_trusted(root):
    add(root, "a/10_age_14.jpg")  # now
    for _ in range(2):
        index, listed, (sentence,) = opened(root)
        assert (len(index), listed) == (6, True)
        assert "changed less than 2 seconds before" in sentence
    assert not (root.parent / CACHE_FOLDER).exists()
    os.utime(root / "a", ns=(0, os.stat(root / "a").st_mtime_ns - 3_000_000_000))
    assert opened(root)[1:] == (True, [])
    assert opened(root)[1:] == (False, [])


def test_a_change_while_it_is_listed_is_seen_the_next_time(root, monkeypatch):
    def list_and_change(*arguments, **how):
        index = index_identity_folders(*arguments, **how)
        add(root, "b/11_age_3.jpg")
        return index

    monkeypatch.setattr(index_cache, "index_identity_folders", list_and_change)
    assert len(opened(root)[0]) == 5
    monkeypatch.undo()
    index, listed, _ = opened(root)
    assert (len(index), listed) == (6, True)


@pytest.mark.parametrize("suffix", [".rec", ".idx"])
def test_records_of_another_size_or_time_are_read_again(packed, suffix):
    opened(packed)
    os.utime(packed.with_suffix(suffix), (LONG_AGO + 1, LONG_AGO + 1))
    _, listed, reports = opened(packed)
    assert (listed, len(reports)) == (True, 1)
    packed.with_suffix(".idx").write_text(packed.with_suffix(".idx").read_text() + "\n")
    make_old(packed, packed.with_suffix(".idx"))
    assert [opened(packed)[1] for _ in range(2)] == [True, False]
    (packed.parent / "property").write_text("9,112,112\n")
    with pytest.raises(UserError, match="says 9 identities"):  # of a kept index too
        opened(packed)


def test_damage_of_any_kind_is_listed_again_with_one_sentence(root):
    plain, _, _ = opened(root)
    kept = root.parent / CACHE_FOLDER / "faces.ms1mv3.npz"
    good = kept.read_bytes()
    draw = np.random.RandomState(3)
    damages = [b"", b"PK", good[:200], good[:-30], b"\x80\x04]." * 20, bytes(len(good))]
    for _ in range(60):
        content = bytearray(good)
        content[draw.randint(len(content))] ^= 1 << draw.randint(8)
        damages.append(bytes(content))
    refused = 0
    for content in damages:
        kept.write_bytes(content)
        index, listed, reports = opened(root)
        assert same(index, plain)
        assert len(reports) == listed  # a bit may be one that nobody reads
        refused += listed
        assert kept.read_bytes() == good or not listed
    assert refused > 30
    kept.unlink()
    kept.mkdir()
    index, listed, reports = opened(root)
    assert same(index, plain)
    assert (listed, len(reports)) == (True, 2)  # not read, not written


WRONG_ARRAYS = [
    {"identities": np.array([0, 0, 1, 2, 9])}, {"identities": np.array([0, 0, 1, 2, -1])},
    {"identities": np.zeros(5, np.int32)}, {"identities": np.zeros((5, 1), np.int64)},
    {"identities": np.array([{}] * 5)}, {"identities": np.empty(0, np.int64)}, {"ages": np.zeros(4, np.int16)},
    {"path_offsets": np.array([0, 9, 3, 4, 5, 60])}, {"path_offsets": np.zeros(6, np.int64)},
]  # fmt: skip


def test_arrays_that_do_not_fit_and_compressed_ones_are_not_used(root):
    plain = opened(root)[0]
    kept = root.parent / CACHE_FOLDER / "faces.ms1mv3.npz"
    with np.load(kept) as arrays:
        good = dict(arrays)
    for save, wrong in [(np.savez, wrong) for wrong in WRONG_ARRAYS] + [(np.savez_compressed, {})]:
        save(kept, **good | wrong)
        index, listed, reports = opened(root)
        assert same(index, plain) and (listed, len(reports)) == (True, 1)
        assert ("can't be used" if wrong else "it is compressed") in reports[0]


def test_without_a_place_to_write_the_index_is_made_and_one_sentence_says_so(root, tmp_path):
    (tmp_path / "file").touch()
    for _ in range(2):
        index, listed, (sentence,) = opened(root, cache_folder=tmp_path / "file" / "below")
        assert same(index, index_identity_folders(root, MS1MV3))
        assert listed
        assert "is not kept for the next time" in sentence
        assert "Not a directory" in sentence


def test_a_cache_folder_can_be_given_or_none_be_used(root, tmp_path):
    assert opened(root, cache=False)[1:] == (True, [])
    for expected in (True, False):
        assert opened(root, cache_folder=tmp_path / "x" / "y")[1] is expected
    (name,) = os.listdir(tmp_path / "x" / "y")
    assert re.fullmatch(r"faces\.ms1mv3\.[0-9a-f]{12}\.npz", name)
    assert not (tmp_path / CACHE_FOLDER).exists()


def test_data_sets_of_one_name_share_a_cache_folder(tmp_path, packed):
    """2d: two train.rec took turns replacing each other's index."""
    paths = [packed, Path(shutil.copytree(packed.parent, tmp_path / "b")) / "train.rec"]
    for expected in (True, False):
        assert [opened(path, cache_folder=tmp_path / "cache")[1:] for path in paths] == [(expected, [])] * 2


@pytest.mark.parametrize("below", ["", "a"])
def test_a_path_that_is_refused_leaves_nothing_behind(tmp_path, root, below):
    """13: --train-data that is no data set left an empty cache folder beside it, here inside the data set."""
    before = sorted(root.rglob("*")), os.listdir(tmp_path)
    with pytest.raises(UserError):
        opened(root / below, min_identities=9)
    assert (sorted(root.rglob("*")), os.listdir(tmp_path)) == before


def test_a_data_set_that_moves_with_its_cache_stays_known(root, tmp_path):
    (tmp_path / "place").mkdir()
    root.rename(tmp_path / "place" / "faces")
    opened(tmp_path / "place" / "faces")
    (tmp_path / "place").rename(tmp_path / "moved")
    index, listed, _ = opened(tmp_path / "moved" / "faces")
    assert not listed
    assert os.path.exists(index.path(0))


def test_several_at_once_leave_one_whole_file(root):
    plain = index_identity_folders(root, MS1MV3)
    code = (f"import sys; sys.path.insert(0, {str(Path(index_cache.__file__).parent.parent)!r})\n"
            "from data.index_cache import open_index; from meta import FILENAME_PATTERNS\n"
            f"for _ in range(30): print(len(open_index({str(root)!r}, FILENAME_PATTERNS['ms1mv3'])))\n")  # fmt: skip
    others = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    with ThreadPoolExecutor(1) as pool:
        for result in pool.map(lambda _: opened(root), range(30)):
            assert same(result[0], plain)
    for other in others:
        assert other.communicate(timeout=60)[0].split() == ["5"] * 30
    assert kept_files(root) == ["faces.ms1mv3.npz"]


def test_opening_and_the_protocols_need_no_torch(root):
    """An index of millions is opened in megabytes, not beside torch's 500; NumPy users score without it."""
    code = (f"import sys; sys.path.insert(0, {str(Path(index_cache.__file__).parent.parent)!r})\n"
            "from data.index_cache import open_index\nfrom evaluation import protocols\n"
            f"assert len(open_index({str(root)!r}, None)) == 5\nassert 'torch' not in sys.modules")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_path_is_opened_as_what_it_is(tmp_path, root, packed):
    add(tmp_path / "faces.rec", "a/1_age_3.jpg")  # a folder
    kinds = [type(opened(path, cache=False)[0]) for path in (root, tmp_path / "faces.rec", packed, packed.parent)]
    assert kinds == [FaceIndex, FaceIndex, RecordIndex, RecordIndex]


@pytest.mark.parametrize("cache", [True, False])
def test_what_is_neither_is_refused_in_one_sentence(tmp_path, root, cache):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "bad.rec").write_bytes(b"\x01\x00" * 50)
    add(tmp_path / "flat", "1_age_3.jpg")
    cases = {"notes.txt": "is no folder of faces and no record file", "gone": "does not exist", "bad.rec": "is damaged",
             "gone.rec": "No such file", "flat": "holds no images", "nul\0": "does not exist"}  # fmt: skip
    for name, part in cases.items():
        with pytest.raises(UserError, match=part) as caught:
            open_index(f"{tmp_path}/{name}", MS1MV3, what="faces", cache=cache, report=Reports())
        assert "\n" not in str(caught.value)
    for _ in range(2):  # listed, and kept
        refused(open_index, root, MS1MV3, min_identities=5, cache=cache, match="images of 4 identities, but at least 5")
        open_index(root, MS1MV3, cache=cache)
