"""data/faces.py: what an index holds, in which order, and what it refuses. Nothing is decoded, files are empty."""

import pickle
import pickletools

import numpy as np
import pytest
from refusals import refused

from data.faces import index_identity_folders, index_names, index_pictures
from meta import AGE_GROUP_UPPER_EDGES, FILENAME_PATTERNS, UserError, age_group

MS1MV3 = FILENAME_PATTERNS["ms1mv3"]


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names_of(index):
    return [index.name(i) for i in range(len(index))]


def test_index_holds_every_picture_in_sorted_order(tmp_path):
    touch(tmp_path, "b/1_age_70.jpg", "b/0_age_12.jpg", "a/9_age_13.PNG", "c/2_age_30.JpEg")
    index = index_identity_folders(tmp_path, MS1MV3)
    assert names_of(index) == ["a/9_age_13.PNG", "b/0_age_12.jpg", "b/1_age_70.jpg", "c/2_age_30.JpEg"]
    assert index.path(2) == str(tmp_path / "b" / "1_age_70.jpg")
    assert index.identity_names == ("a", "b", "c")
    assert index.num_identities == 3
    assert index.identities.tolist() == [0, 1, 1, 2]
    assert index.ages.tolist() == [13, 12, 70, 30]
    assert index.age_groups.tolist() == [1, 0, 7, 3]
    assert (index.identities.dtype, index.ages.dtype) == (np.int64, np.int16)
    assert (index.path_offsets.dtype, index.age_groups.dtype) == (np.int64, np.int64)


def test_other_files_hidden_files_and_folders_without_images_do_not_count(tmp_path):
    touch(tmp_path, "a/x.jpg", "a/notes.txt", "a/.hidden.jpg", "a/._x.jpg", "a/jpg", "a/deeper/y.jpg", "loose.jpg")
    touch(tmp_path, "empty/readme.md", ".cache/z.jpg", "__MACOSX/._x.jpg", "b/y.webp", "b/y.bmp")
    (tmp_path / "a" / "folder.jpg").mkdir()
    index = index_identity_folders(tmp_path, None)
    assert names_of(index) == ["a/x.jpg", "b/y.bmp", "b/y.webp"]
    assert index.identity_names == ("a", "b")
    assert index.ages is None
    assert index.age_groups.tolist() == [-1, -1, -1]


def test_age_groups_agree_with_meta_on_both_sides_of_every_edge(tmp_path):
    ages = sorted({age for edge in AGE_GROUP_UPPER_EDGES for age in (edge, edge + 1)} | {0, 120})
    touch(tmp_path, *(f"p/{i:03d}_age_{age}.jpg" for i, age in enumerate(ages)))
    index = index_identity_folders(tmp_path, MS1MV3)
    assert index.ages.tolist() == ages
    assert index.age_groups.tolist() == [age_group(age) for age in ages]


def test_links_are_followed_and_a_broken_one_is_not_dropped(tmp_path):
    touch(tmp_path, "elsewhere/real/x.jpg")
    faces = tmp_path / "faces"
    faces.mkdir()
    (faces / "linked").symlink_to(tmp_path / "elsewhere" / "real")
    (tmp_path / "elsewhere" / "real" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert names_of(index_identity_folders(faces, None)) == ["linked/gone.jpg", "linked/x.jpg"]


def test_index_of_names_keeps_order_and_knows_no_identity(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = index_names("faces", ["z.jpg", "sub/a.jpg"])
    assert names_of(index) == ["z.jpg", "sub/a.jpg"] and index.name(-1) == "sub/a.jpg"
    with pytest.raises(IndexError):
        index.name(2)
    assert index.path(1) == str(tmp_path / "faces" / "sub" / "a.jpg")  # absolute
    assert index.identities.tolist() == index.age_groups.tolist() == [-1, -1]
    assert len(index_names(tmp_path, [])) == 0


def test_number_of_objects_does_not_grow_with_the_number_of_pictures(tmp_path):
    def num_objects(folder, num_images):
        touch(tmp_path / folder, *(f"a/{i:04d}_age_{i % 90}.jpg" for i in range(num_images)))
        packed = pickle.dumps(index_identity_folders(tmp_path / folder, MS1MV3), protocol=5)
        return sum(1 for _ in pickletools.genops(packed))

    assert num_objects("many", 300) <= num_objects("few", 3) + 10


def test_a_folder_that_is_missing_or_a_file_is_named_with_how_to_get_it(tmp_path):
    missing = tmp_path / "nowhere"
    with pytest.raises(UserError) as caught:
        index_identity_folders(missing, None, what="FG-NET", how_to_get="https://example.org/fgnet")
    for part in (str(missing), "FG-NET", "does not exist", "https://example.org/fgnet"):
        assert part in str(caught.value)
    touch(tmp_path, "file")
    with pytest.raises(UserError, match="file' is a file, no folder of images: give a folder"):
        index_identity_folders(tmp_path / "file", None)


@pytest.mark.parametrize(("names", "how", "words"), [
    ((), {}, "holds no images: put one folder per identity"),
    (("a/notes.txt",), {}, "holds no images: put one folder per identity"),
    (("loose.jpg",), {}, "holds no images where .* 1 pictures lie directly in it .*: put each into the folder"),
    (("too/deep/x.jpg",), {}, "holds no images where .* 1 folders in it hold their pictures a folder too deep"),
    (("a/x.jpg", "a/y.jpg", "b/notes.txt"), {"min_identities": 2}, "images of 1 identity, but at least 2 are needed"),
    (("a/0_age_3.jpg", "b/plain.jpg"), {"pattern": MS1MV3}, rf"/b/plain.jpg' has no age .*{MS1MV3.example}"),
])  # fmt: skip
def test_a_folder_that_lacks_images_identities_or_ages_is_refused(tmp_path, names, how, words):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=words) as caught:
        index_identity_folders(tmp_path, **{"pattern": None} | how)
    assert str(tmp_path) in str(caught.value)


def test_the_pictures_of_some_identities_keep_names_ages_and_order(tmp_path):
    touch(tmp_path, *(f"{name[:3]}/{name}.JPG" for name in ("001A02", "001A30", "002A05", "003A07", "003A08")))
    index = index_identity_folders(tmp_path, FILENAME_PATTERNS["fgnet"])
    kept = index.of_identities([2, 0])
    assert names_of(kept) == [index.name(i) for i in (0, 1, 3, 4)]
    assert kept.identities.tolist() == [0, 0, 1, 1] and kept.identity_names == ("001", "003")
    assert kept.ages.tolist() == [2, 30, 7, 8]


def test_the_state_changes_with_a_files_bytes_and_the_fingerprint_does_not(tmp_path):
    touch(tmp_path, "001/001A02.JPG")
    index = index_identity_folders(tmp_path, FILENAME_PATTERNS["fgnet"])
    before = index.fingerprint(), index.state()
    (tmp_path / "001" / "001A02.JPG").write_bytes(b"other")
    assert index.fingerprint() == before[0] and index.state() != before[1]


def test_the_state_of_some_pictures_changes_with_these_alone(tmp_path):
    """Whatever else is in the folder by now, and wherever in the list they stand."""
    (tmp_path / "001").mkdir()
    for age in (2, 3, 4):
        (tmp_path / "001" / f"001A0{age}.JPG").write_bytes(b"one")
    index = index_identity_folders(tmp_path, FILENAME_PATTERNS["fgnet"])
    first, others = index.state(rows=[0]), index.state(rows=np.array([1, 2]))
    assert len({first, others, index.state(rows=[2, 1]), index.state(rows=[1]), index.state()}) == 5
    (tmp_path / "001" / "001A02.JPG").unlink()
    assert index.state(rows=[0]) != first and index.state(rows=[1, 2]) == others
    later = index_identity_folders(tmp_path, FILENAME_PATTERNS["fgnet"])
    assert later.state(rows=[0, 1]) == others


def test_pictures_anywhere_below_a_folder_are_listed_sorted_and_hidden_ones_are_not(tmp_path):
    touch(tmp_path, "b/2.jpg", "b/c/1.PNG", "a.jpeg", "b/.3.jpg", ".hidden/4.jpg", "notes.txt", "x/y")
    index = index_pictures(tmp_path)
    assert [index.key(i) for i in range(len(index))] == ["a.jpeg", "b/2.jpg", "b/c/1.PNG"]
    assert index.ages is None and (index.identities == -1).all()
    refused(index_pictures, tmp_path / "x", "strangers", match="of strangers holds no picture")
