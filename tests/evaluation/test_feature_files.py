"""evaluation/embeddings/feature_files.py: embeddings of foreign models, distractors, names that find their pictures."""

import io
import os
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.faces import index_names
from evaluation.embeddings.array_files import picture_name
from evaluation.embeddings.feature_files import (
    holds_features,
    match_names,
    open_distractors,
    read_features,
    write_embeddings,
)
from meta import UserError

NAMES = ["a.jpg", "sub/b.jpg", "c.jpg"]


def embeddings(num=3, size=4, seed=0):
    return np.random.default_rng(seed).normal(size=(num, size)).astype(np.float32)


def matrix(rows, header=None):
    """A MegaFace file: one embedding as a column, several as rows."""
    rows = np.asarray(rows, "<f4")
    num, size = rows.shape
    usual = (size, 1, 4, 5) if num == 1 else (num, size, 4 * size, 5)
    return struct.pack("<4i", *(header or usual)) + rows.tobytes()


def npy(array, **how):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), **how)
    return buffer.getvalue()


def npz(path, compression=zipfile.ZIP_STORED, **arrays):
    """An archive whose entries may be anything."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy(content))
    return path


def refused(read, *arguments, **flags):
    with pytest.raises(UserError) as caught:
        result = read(*arguments, **flags)
        list(result)
    message = str(caught.value)
    assert message.isprintable() and message.endswith(".") and len(message) < 700
    return message


def refused_distractors(path):
    return refused(open_distractors(path).__iter__)


def test_what_is_written_is_read_again_and_the_same_content_gives_the_same_bytes(tmp_path):
    mirror, ages = embeddings(seed=1).astype(np.float16), np.full((3, 8), 0.125, np.float32)
    for name in ("one.npz", "two.npz"):
        write_embeddings(tmp_path / name, NAMES, embeddings(), mirror=mirror, age_probabilities=ages)
    features = read_features(tmp_path / "one.npz")
    assert features.names.tolist() == NAMES and len(features) == 3 and features.not_read == ()
    for found, expected in ((features.embeddings, embeddings()), (features.mirror, mirror),
                            (features.age_probabilities, ages)):  # fmt: skip
        assert found.dtype == expected.dtype and np.array_equal(found, expected)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_nothing_is_replaced_without_force_and_a_refused_array_leaves_no_file(tmp_path):
    path = tmp_path / "e.npz"
    write_embeddings(path, NAMES, embeddings())
    assert "--force" in refused(write_embeddings, path, NAMES, embeddings(seed=1))
    write_embeddings(path, NAMES, embeddings(seed=1), force=True)
    assert np.array_equal(read_features(path).embeddings, embeddings(seed=1))
    assert "end in .npz" in refused(write_embeddings, tmp_path / "e.npy", NAMES, embeddings())
    for names, rows, words in ((NAMES[:2], embeddings(), "2 names"),
                               (["a", "b", "a"], embeddings(), "twice, in rows 0 and 2"),
                               (NAMES, embeddings() * np.nan, "NaN or infinity in row 0"),
                               (NAMES, embeddings() * [[1], [0], [1]], "zeros in row 1 ('sub/b.jpg')"),
                               (["a", "", "c"], embeddings(), "empty name in row 1"),
                               (NAMES, np.ones((3, 4), int), "int64")):  # fmt: skip
        assert words in refused(write_embeddings, tmp_path / "new.npz", names, rows)
    assert [path.name for path in tmp_path.iterdir()] == ["e.npz"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
def test_every_float_order_and_packing_is_read(tmp_path, dtype, compression):
    rows = embeddings().astype(dtype)
    for array in (rows, np.asfortranarray(rows)):
        path = npz(tmp_path / "e.npz", compression, names=np.array(NAMES).astype(">U9"), embeddings=array)
        features = read_features(path)
        assert np.array_equal(features.embeddings, rows) and features.names.tolist() == NAMES
        np.save(tmp_path / "e.npy", array)
        (tmp_path / "e.txt").write_text("\n".join(NAMES))
        assert np.array_equal(read_features(tmp_path / "e.npy").embeddings, rows)
    names = np.array([b"a.jpg", "\u00e9.jpg".encode(), b"\xff.jpg"])
    features = read_features(npz(path, compression, names=names, embeddings=rows, ages=np.arange(3)))
    assert features.names.tolist() == ["a.jpg", "\u00e9.jpg", "\udcff.jpg"] and features.not_read == ("ages",)


def test_names_of_an_npy_or_a_matrix_come_from_the_text_beside_it(tmp_path):
    np.save(tmp_path / "e.npy", embeddings())
    (tmp_path / "e.txt").write_text("a b.jpg\r\n\nsub/b.jpg\nc.jpg\n")
    assert read_features(tmp_path / "e.npy").names.tolist() == ["a b.jpg", "sub/b.jpg", "c.jpg"]
    (tmp_path / "m.bin").write_bytes(matrix(embeddings()))
    assert "list of names" in refused(read_features, tmp_path / "m.bin")
    (tmp_path / "m.txt").write_text((tmp_path / "e.txt").read_text())
    features = read_features(tmp_path / "m.bin")
    assert features.names[0] == "a b.jpg" and np.array_equal(features.embeddings, embeddings())
    assert isinstance(features.embeddings, np.memmap)
    (tmp_path / "e.txt").write_text("a.jpg\n")
    assert "3 embeddings for 1 names" in refused(read_features, tmp_path / "e.npy")


def test_a_megaface_folder_gives_names_without_what_the_model_added(tmp_path):
    for row, name in zip(embeddings(), ("x/1_0.jpg_model_4.bin", "x/2.JPG.bin", "3.bin"), strict=True):
        path = tmp_path / "f" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(matrix(row[None]))
    (tmp_path / "f" / "readme").touch()
    features = read_features(tmp_path / "f")
    assert features.names.tolist() == ["3", "x/1_0.jpg", "x/2.JPG"]
    assert np.array_equal(features.embeddings, embeddings()[[2, 0, 1]])
    assert features.not_read == ("1 files that are no .bin",)
    assert picture_name("a.jpg_b/c.png_v1.2.bin") == "a.jpg_b/c.png"


def test_distractors_come_in_chunks_from_every_kind_of_file_as_often_as_wanted(tmp_path, monkeypatch):
    for module in ("array_files", "feature_files"):
        monkeypatch.setattr(f"evaluation.embeddings.{module}.VALUES_A_CHUNK", 12)
    rows = embeddings(10)
    rows[4] = 0  # what some extractors write where they found no face: left to whoever scores
    np.save(tmp_path / "d.npy", rows)
    npz(tmp_path / "d.npz", embeddings=rows)
    (tmp_path / "d.bin").write_bytes(matrix(rows))
    (tmp_path / "step4.bin").write_bytes(matrix(rows, (10, 4, 4, 5)))
    (tmp_path / "f").mkdir()
    for i, row in enumerate(rows):
        (tmp_path / "f" / f"{i}.bin").write_bytes(matrix(row[None]))
    for name in ("d.npy", "d.npz", "d.bin", "step4.bin", "f"):
        distractors = open_distractors(tmp_path / name)
        for _ in range(2):
            chunks = list(distractors)
            assert np.array_equal(np.concatenate(chunks), rows)
            assert max(map(len, chunks)) == 3
    (tmp_path / "f" / "2.bin").write_bytes(matrix(embeddings(1, 5)))
    assert "2.bin' has 5 numbers a picture, the files before it have 4" in refused_distractors(tmp_path / "f")
    (tmp_path / "f" / "2.bin").write_bytes(matrix([[1, 2, np.inf, 3]]))
    assert "2.bin' holds NaN or infinity in row 0" in refused_distractors(tmp_path / "f")
    np.save(tmp_path / "d.npy", np.where(np.arange(40).reshape(10, 4) == 30, np.nan, 1.0))
    assert "NaN or infinity in row 7" in refused_distractors(tmp_path / "d.npy")


@pytest.mark.parametrize("header", [(4, 1, 4, 6), (4, 1, 8, 5), (0, 1, 4, 5), (-4, -1, 4, 5), (5, 1, 4, 5),
                                    (2**31 - 1, 2**31 - 1, 4, 5), (4, 2, 8, 5)])  # fmt: skip
def test_a_matrix_whose_header_does_not_fit_is_refused(tmp_path, header):
    path = tmp_path / "m.bin"
    path.write_bytes(matrix(embeddings(1), header))
    message = refused_distractors(path)
    assert "m.bin" in message and "four int32" in message
    path.write_bytes(b"\0hort")
    assert "it has 5 bytes" in refused_distractors(path)


def test_sizes_that_a_header_claims_take_no_memory(tmp_path):
    head = npy(embeddings())
    huge = head.replace(b"(3, 4)", b"(%d, %d)" % (10**7, 10**7)).replace(b" " * 14 + b"\n", b"\n")
    huge = huge[:8] + struct.pack("<H", huge.index(b"\n") - 9) + huge[10:]
    (tmp_path / "e.npy").write_bytes(huge)
    npz(tmp_path / "e.npz", names=np.array(NAMES), embeddings=huge)
    bomb = npz(tmp_path / "bomb.npz", zipfile.ZIP_DEFLATED, names=np.array(NAMES), embeddings=np.zeros((10, 10**6)))
    tracemalloc.start()
    assert "claims 400,000,000,000,000 bytes" in refused_distractors(tmp_path / "e.npy")
    assert "claims 400,000,000,000,000 bytes" in refused(read_features, tmp_path / "e.npz")
    assert "claims to unpack to 80,000,1" in refused(read_features, bomb)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_python_objects_are_never_unpickled(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    objects = np.array([Harm(), Harm(), Harm()], dtype=object)
    np.save(tmp_path / "e.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "e.npz", names=objects, embeddings=embeddings())
    assert "Python objects" in refused_distractors(tmp_path / "e.npy")
    assert "Python objects" in refused(read_features, tmp_path / "e.npz")
    assert not (tmp_path / "harm").exists()


BROKEN = {
    "no archive": (lambda path: path.write_bytes(b"PK\3\4 no more"), "has no end, the download stopped early"),
    "no names": (lambda path: npz(path, embeddings=embeddings()), "no array 'names'"),
    "no embeddings": (lambda path: npz(path, names=NAMES), "no array 'embeddings'"),
    "numbers as names": (lambda path: npz(path, names=np.arange(3), embeddings=embeddings()), "not text (N,)"),
    "a table of names": (lambda path: npz(path, names=[NAMES], embeddings=embeddings()), "not text (N,)"),
    "flat": (lambda path: npz(path, names=NAMES, embeddings=embeddings()[0]), "not floating point numbers (N,D)"),
    "integers": (lambda path: npz(path, names=NAMES, embeddings=np.ones((3, 4), int)), "int64 values"),
    "none": (lambda path: npz(path, names=NAMES, embeddings=np.ones((0, 4))), "shape (0, 4)"),
    "another packing": (lambda path: npz(path, zipfile.ZIP_LZMA, names=NAMES, embeddings=embeddings()), "a method"),
    "short mirror": (lambda path: npz(path, names=NAMES, embeddings=embeddings(), mirror=embeddings(2)), "'mirror'"),
    "seven ages": (lambda path: npz(path, names=NAMES, embeddings=embeddings(), age_probabilities=np.ones((3, 7))),
                   "(3, 8) are expected"),
    "no characters": (lambda path: npz(path, embeddings=embeddings(),
                                       names=npy(np.array(["abc"] * 3)).replace(b"a\0\0\0", b"\xff" * 4)),
                      "no characters"),
    "an entry that is cut off": (lambda path: npz(path, names=NAMES, embeddings=npy(embeddings())[:-4]),
                                 "claims 48 bytes of numbers, there are 44"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_an_archive_that_is_no_table_of_embeddings_is_refused_in_one_sentence(tmp_path, case):
    write, words = BROKEN[case]
    write(tmp_path / "e.npz")
    assert words in refused(read_features, tmp_path / "e.npz")


def test_paths_that_are_no_files_of_embeddings_are_refused(tmp_path):
    (tmp_path / "e.pkl").touch()
    os.mkfifo(tmp_path / "pipe.bin")
    (tmp_path / "folder").mkdir()
    for name, words in (("e.pkl", "ends in .npz, .npy or .bin"), ("gone.npz", "No such file"),
                        ("pipe.bin", "a device"), ("folder", "no .bin file"), ("nul\0.npz", "null")):  # fmt: skip
        assert words in refused(read_features, f"{tmp_path}/{name}")
    assert "No such file" in refused(open_distractors, tmp_path / "gone.npy")


def match(names, keys):
    return match_names(names, index_names("/faces", keys), "e.npz")


@pytest.mark.parametrize(("names", "rows", "num_by_base_name"), [
    (["c.jpg", "a.jpg", "sub/b.jpg"], [1, 2, 0], 0),
    (["./a.jpg", "sub//b.jpg", "other/x.jpg", "c.jpg"], [0, 1, 3], 0),
    (["D:\\faces\\a.jpg", "D:\\faces\\sub\\b.jpg", "D:\\faces\\c.jpg"], [0, 1, 2], 3),
    (["/x/a.jpg", "a.jpg", "elsewhere/b.jpg", "c.jpg"], [1, 2, 3], 1),  # the path before the base name
])  # fmt: skip
def test_names_find_their_pictures_by_the_path_or_a_base_name_that_is_unique(names, rows, num_by_base_name):
    assert match(names, NAMES) == (pytest.approx(rows), num_by_base_name)


@pytest.mark.parametrize(("names", "keys", "words"), [
    (["a.jpg", "./a.jpg"], ["a.jpg"], "the name 'a.jpg' twice, in rows 0 and 1"),
    (["a.jpg"], ["a.jpg", "b.jpg", "c.jpg"], "no embedding for 2 of 3 pictures below '/faces' ('b.jpg', 'c.jpg')"),
    (["z.jpg"], NAMES, "its own names are such as 'z.jpg'"),
])  # fmt: skip
def test_names_that_leave_a_doubt_are_refused(names, keys, words):
    assert words in refused(match, names, keys)


PATHS = st.lists(
    st.lists(st.sampled_from(["x", "y", "1.jpg", "2.jpg", "3.jpg"]), min_size=1, max_size=3).map("/".join),
    min_size=1, max_size=5, unique=True,
)  # fmt: skip


@given(names=PATHS, keys=PATHS)
def test_a_match_is_what_a_plain_search_finds_and_no_row_serves_two_pictures(names, keys):
    def plain(key):
        same = [j for j, name in enumerate(names) if name == key]
        base = key.split("/")[-1]
        alike = [j for j, name in enumerate(names) if name.split("/")[-1] == base]
        is_unique = len(alike) == 1 == sum(other.split("/")[-1] == base for other in keys)
        return same or (alike if is_unique else [])

    expected = [plain(key) for key in keys]
    if not all(expected):
        assert "no embedding for" in refused(match, names, keys)
        return
    rows = match(names, keys).rows.tolist()
    assert [[row] for row in rows] == expected and len(set(rows)) == len(rows)


def test_a_path_of_features_is_not_one_of_pictures(tmp_path):
    for name in ("pictures/a.jpg", "features/deep/a.jpg_model.BIN"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    names = {"pictures": False, "train.rec": False} | dict.fromkeys(("features", "a.npz", "b.npy", "c.bin"), True)
    assert {name: holds_features(tmp_path / name) for name in names} == names
