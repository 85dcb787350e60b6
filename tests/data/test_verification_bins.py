"""data/verification_bins.py and utils/restricted_pickle.py: InsightFace's .bin files, and pickles that mean harm."""

import hashlib
import io
import os
import pickle
import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.loaders import batches, evaluation_loader
from data.pairs import PairList, read_pair_list
from data.transforms import UnreadablePicture, decode_face
from data.verification_bins import find_verification_bins, read_verification_bin, write_verification_bin
from meta import UserError
from utils import restricted_pickle
from utils.files import sha256
from utils.restricted_pickle import Array, read_pickle


def picture(seed, kind="PNG", size=(112, 112)):
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(buffer, kind)
    return buffer.getvalue()


PICTURES = [picture(0), picture(1, "JPEG"), picture(0), picture(2)]


def write(tmp_path, content, name="lfw.bin"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    return path


def refused(path):
    """The message with which a file is refused."""
    with pytest.raises(UserError) as caught:
        read_verification_bin(path)
    message = str(caught.value)
    assert str(path) in message and "is expected" in message and len(message) < 600 and message.isprintable()
    return message


def test_pairs_come_in_order_and_a_picture_of_two_pairs_stands_once(tmp_path):
    path = write(tmp_path, (PICTURES, [True, False]))
    pairs = read_verification_bin(path)
    assert isinstance(pairs, PairList) and len(pairs) == 2
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.genuine.tolist()) == ([0, 0], [1, 2], [True, False])
    assert (pairs.first.dtype, pairs.second.dtype, pairs.genuine.dtype) == (np.int64, np.int64, bool)
    assert (pairs.missing, pairs.num_pairs_dropped) == ((), 0)
    assert pairs.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == sha256(path)
    faces = pairs.images
    assert [faces.read(i) for i in range(len(faces))] == [PICTURES[0], PICTURES[1], PICTURES[3]]
    assert [faces.name(i) for i in range(3)] == ["lfw.bin image 0", "lfw.bin image 1", "lfw.bin image 3"]
    assert [faces.key(i) for i in range(3)] == ["lfw.bin/0", "lfw.bin/1", "lfw.bin/3"] and faces.read(-1) == PICTURES[3]
    for ask in (faces.read, faces.name, faces.key):
        with pytest.raises(IndexError):
            ask(3)


def test_the_pictures_are_an_index_of_faces_that_the_loaders_take(tmp_path):
    faces = read_verification_bin(write(tmp_path, (PICTURES, [True, False]))).images
    assert faces.identities.tolist() == faces.age_groups.tolist() == [-1, -1, -1]
    assert (faces.ages, faces.identity_names, faces.num_identities) == (None, (), 0)
    assert faces.root == str(tmp_path / "lfw.bin")
    for workers in (0, 1):
        (batch,) = batches(evaluation_loader(faces, batch_size=8, workers=workers))
        expected = torch.stack([decode_face(content) for content in (PICTURES[0], PICTURES[1], PICTURES[3])])
        assert torch.equal(batch.images, expected)
    faces = read_verification_bin(write(tmp_path, ([PICTURES[0], b"no picture"], [True]))).images
    with pytest.raises(UnreadablePicture, match=r"'lfw.bin image 1' cannot be decoded, it is not an image"):
        faces.decode(1)


def test_another_file_has_another_fingerprint(tmp_path):
    prints = {
        read_verification_bin(write(tmp_path, (images, answers))).images.fingerprint()
        for images, answers in [(PICTURES, [True, False]), (PICTURES, [True, True]), (PICTURES[::-1], [True, False])]
    }
    assert len(prints) == 3


# What Python 2.7.18 and numpy 1.16.6 wrote for (pictures, answers): protocol 0, and cPickle's protocol 2.
FROM_PYTHON_2 = {
    "text": b'((lp0\nS\'\\xff\\xd8a\\n\\\'"\\\\\\x00z\'\np1\naS\'two\'\np2\nag1\naS\'four\'\np3\na(lp4\nI01\naI00\natp'
    b'5\n.',
    "binary": b'\x80\x02]q\x01(U\t\xff\xd8a\n\'"\\\x00zq\x02U\x03twoq\x03h\x02U\x04fourq\x04e]q\x05(\x88\x89e\x86.',
}  # fmt: skip
ARRAYS_FROM_PYTHON_2 = {
    "text": b"((lp1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntS'b'\ntRp4\n(I1\n(I7\ntcnum"
    b"py\ndtype\np5\n(S'u1'\nI0\nI1\ntRp6\n(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\nS'hello\\xff\\n'\ntbaS'two'\np7"
    b"\na(lp8\ncnumpy.core.multiarray\nscalar\np9\n(g5\n(S'b1'\nI0\nI1\ntRp10\n(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbS"
    b"'\\x01'\ntRp11\nat.",
    "binary": b'\x80\x02]q\x01(cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87Rq'
    b'\x04(K\x01K\x07\x85cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff'
    b'\xff\xff\xffK\x00tb\x89U\x07hello\xff\ntbU\x03twoq\x07e]q\x08cnumpy.core.multiarray\nscalar\nq\th\x05U'
    b'\x02b1K\x00K\x01\x87Rq\n(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x01\x01\x86Rq\x0ba\x86'
    b'.',
}  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "binary"])
def test_what_python_2_wrote_reads_alike(tmp_path, kind):
    pairs = read_verification_bin(write(tmp_path, FROM_PYTHON_2[kind]))
    assert [pairs.images.read(i) for i in range(3)] == [b"\xff\xd8a\n'\"\\\x00z", b"two", b"four"]
    assert (pairs.first.tolist(), pairs.genuine.tolist()) == ([0, 0], [True, False])
    pairs = read_verification_bin(write(tmp_path, ARRAYS_FROM_PYTHON_2[kind]))
    assert [pairs.images.read(i) for i in range(2)] == [b"hello\xff\n", b"two"]
    assert pairs.genuine.tolist() == [True]


ANSWERS = {"booleans": [True, False], "a tuple": (True, False), "numbers": [1, 0],
           "numpy's booleans": [np.True_, np.False_], "an array": np.array([True, False])}  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("answers", ANSWERS.values(), ids=ANSWERS)
def test_every_protocol_and_kind_of_picture_and_answer_reads_alike(tmp_path, protocol, answers):
    array = np.frombuffer(PICTURES[1], dtype=np.uint8)
    images = [PICTURES[0], array, array.copy(), bytes(PICTURES[3])]
    pairs = read_verification_bin(write(tmp_path, pickle.dumps((images, answers), protocol)))
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.genuine.tolist()) == ([0, 1], [1, 2], [True, False])
    assert [pairs.images.read(i) for i in range(3)] == [PICTURES[0], PICTURES[1], PICTURES[3]]


@pytest.mark.parametrize(("content", "words"), [
    ((PICTURES[:3], [True, False]), "3 pictures and 2 answers"), (([], []), "0 pictures and 0 answers"),
    ((PICTURES, [True, 2]), "answer 1 is neither True nor False"), ((PICTURES, [True, None]), "answer 1 is neither"),
    (pickle.dumps((PICTURES, [True, np.True_]), 3).replace(b"C\x01\x01", b"C\x01\x02"), "not all 0 or 1"),
    ((PICTURES, np.array([[True, False]])), r"array of shape (1, 2)"),
    ((PICTURES, np.array([7, 1], dtype=np.uint8)), "not all 0 or 1"),
    (([*PICTURES[:3], 5], [True, False]), "picture 3 is neither bytes"),
    (([*PICTURES[:3], "text"], [True, False]), "picture 3 is neither bytes"),
    (([*PICTURES[:3], np.zeros((2, 2), np.uint8)], [True, False]), "picture 3 is neither"),
    (([*PICTURES[:3], np.array([True])], [True, False]), "picture 3 is neither"),
    (([*PICTURES[:3], np.zeros(2, np.float32)], [True, False]), "of the type 'f4'"),
    (([*PICTURES[:3], np.array([None])], [True, False]), "of the type 'O8'"),
    ((PICTURES, [True, False], 1), "something else"), (PICTURES, "something else"),
    ({"images": PICTURES}, "has no place in plain content"),
    (b"\xff\xd8\xff\xe0 a JPEG", "is a JPEG picture, no verification set"),
    (b"\xff\xd9", "at byte 0: the pickle instruction"),
    (b"<!DOCTYPE html><title>Google Drive - Quota exceeded", "is a web page, no verification set"),
    (b"", "is empty: get it again"), (pickle.dumps((PICTURES, [True, False]))[:-9], "at byte "),
])  # fmt: skip
def test_a_file_that_holds_no_pairs_is_refused_with_the_reason(tmp_path, content, words):
    assert words in refused(write(tmp_path, content))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert "No such file" in refused(tmp_path / "nowhere.bin")
    assert "is a folder: give the verification set itself" in refused(tmp_path)
    os.mkfifo(tmp_path / "pipe.bin")  # would never end
    assert "a folder or a device" in refused(tmp_path / "pipe.bin")


def test_a_file_larger_than_memory_may_be_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "sparse.bin"
    with open(path, "wb") as file:
        file.truncate(5 << 30)
    assert "more than 4,294,967,296" in refused(path)


def test_the_sets_of_a_folder_are_found_in_order(tmp_path):
    for name in ("lfw.bin", "agedb_30.bin", ".hidden.bin", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.bin").mkdir()
    assert [path.name for path in find_verification_bins(tmp_path)] == ["agedb_30.bin", "lfw.bin"]


class Call:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "arguments"), [(os.system, ("touch {}",)), (os.mkdir, ("{}",)), (eval, ("open({!r}, 'w')",))]
)
def test_no_function_that_a_file_asks_for_is_called(tmp_path, protocol, function, arguments):
    mark = str(tmp_path / "called")
    call = Call(function, tuple(argument.format(mark) for argument in arguments))
    message = refused(write(tmp_path, pickle.dumps(([call], [True]), protocol)))
    assert "it asks for" in message and not os.path.exists(mark)


def counted(code, size, length):
    return code + length.to_bytes(size, "little")


LENGTH_CLAIMED = {
    code: counted(code, size, (1 << (8 * size - 1)) - 1) + b"x."
    for code, size in [(b"B", 4), (b"T", 4), (b"X", 4), (b"\x8e", 8), (b"\x8d", 8), (b"\x96", 8), (b"C", 1), (b"U", 1)]
}
ARRAY = pickle.dumps(np.zeros(4, np.uint8), 2)
HOSTILE = {
    **{f"length of {code!r}": (content, "are left in the file") for code, content in LENGTH_CLAIMED.items()},
    "negative length": (counted(b"T", 4, 0xFFFFFFFF) + b"x.", "are claimed"),
    "a frame of 2**63 bytes": (b"\x80\x04" + counted(b"\x95", 8, 1 << 63) + b".", "takes more than was put"),
    "a persistent id": (b"Pname\n.", "no place"),
    "an extension": (b"\x82\x01.", "no place"),
    "an object": (b"(i__main__\nCall\n.", "no place"),
    "a dict": (b"}.", "no place"),
    "a deeper stack": (b"(lt.", "takes more than was put"),
    "a mark that is not there": (b"t.", "takes more than was put"),
    "nothing kept": (b"h\x05.", "not kept"),
    "a name of numbers": (b"K\x01K\x02\x93.", "a name is no text"),
    "a long name": (b"c" + b"a" * 5000 + b"\nb\n.", "it asks for"),
    "a name inside numpy": (b"cnumpy\nload\n.", "it asks for 'numpy.load'"),
    "a name by dots": (b"\x8c\x05numpy\x8c\x0cndarray.dump\x93.", "it asks for"),
    "text as a function": (b"X\x01\x00\x00\x00a)R.", "calls what is no function"),
    "arguments that are a list": (b"cnumpy\ndtype\n]R.", "calls what is no function"),
    "another encoding": (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "other arguments"),
    "an array of objects": (ARRAY.replace(b"u1", b"O8"), "of the type 'O8'"),
    "an array larger than its bytes": (ARRAY.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"), "does not fit"),
    "an array of negative size": (ARRAY.replace(b"K\x04\x85", b"J\xff\xff\xff\xff\x85"), "does not fit"),
    "an array of many dimensions": (ARRAY.replace(b"K\x04\x85", b"(" + b"K\x01" * 90 + b"K\x04t"), "does not fit"),
    "an array of another class": (ARRAY.replace(b"cnumpy\nndarray", b"cnumpy\nmatrix"), "it asks for"),
    "a list that is filled": (b"](K\x01tb.", "fills something"),
    "something added to a number": (b"K\x01K\x01a.", "no list"),
    "a number of a million digits": (b"I" + b"9" * 1_000_000 + b"\n.", "has 1,000,000 digits"),
    "a string without quotes": (b"Sabc\n.", "not in quotes"),
    "a line without end": (b"Vabc", "does not end"),
    "half a letter": (b"X\x01\x00\x00\x00\xc3.", "utf-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_with_its_place(tmp_path, name):
    content, words = HOSTILE[name]
    message = refused(write(tmp_path, content))
    assert words in message and "at byte " in message


def big_text_encoded_often():
    """A text of 1 MB, kept, and made into bytes 5,000 times: 5 GB from 1 MB."""
    text = counted(b"X", 4, 1 << 20) + b"a" * (1 << 20) + b"q\x00"
    encode = b"c_codecs\nencode\nq\x01"
    latin = b"X\x06\x00\x00\x00latin1q\x02"
    return text + encode + latin + b"]" + b"h\x01h\x00h\x02\x86Ra" * 5000 + b"."


def lists_of_lists():
    """Ten of ten of ten ...: 10**40 pictures for whoever walks it."""
    ten = [b"]q" + bytes([k]) + b"(" + bytes([ord("h"), k - 1]) * 10 + b"e" for k in range(1, 40)]
    return b"((]q\x00(" + b"K\x01" * 10 + b"e" + b"".join(ten) + b"l]\x88at."


def one_picture_many_times():
    """A megabyte, named 10,000 times: 10 GB for whoever copies or hashes it each time."""
    big = counted(b"B", 4, 1 << 20) + b"a" * (1 << 20) + b"q\x00"
    return b"(]q\x01(" + big + b"h\x00" * 9_999 + b"e](" + b"\x88" * 5_000 + b"et."


def one_array_many_times():
    """The same with arrays that share one content."""
    content = counted(b"B", 4, 1 << 20) + b"a" * (1 << 20) + b"q\x00"
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85Rq\x01"
    array = b"h\x03h\x00h\x01J\x00\x00\x10\x00\x85h\x02tRa"
    names = b"X\x01\x00\x00\x00Cq\x02cnumpy.core.numeric\n_frombuffer\nq\x03"
    return content + dtype + names + b"(]" + array.replace(b"h\x03h\x00", b"h\x03(h\x00") * 5_000 + b"](" \
        + b"\x88" * 2_500 + b"et."  # fmt: skip


BOMBS = {
    "encoded": big_text_encoded_often, "lists": lists_of_lists, "itself": lambda: b"(]q\x00(h\x00h\x00e]\x88at.",
    "one": one_picture_many_times, "arrays": one_array_many_times, "deep": lambda: b"]" + b"\x85" * 49_000 + b".",
    "marks": lambda: b"(" * 50_001, "kept far": lambda: b"]r\xff\xff\xff\x7f.",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_no_small_file_takes_much_memory_or_time(tmp_path, monkeypatch, name):
    monkeypatch.setattr(restricted_pickle, "MAX_INSTRUCTIONS", 50_000)  # a fortieth: measuring memory takes time
    path = write(tmp_path, BOMBS[name]())
    tracemalloc.start()
    began = time.process_time()
    try:
        pairs = read_verification_bin(path)
        assert len(pairs.images) == 1 and name in ("one", "arrays")
    except UserError as error:
        assert len(str(error)) < 600
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40 << 20 and time.process_time() - began < 6


def test_a_pickle_of_too_many_instructions_is_refused(monkeypatch):
    monkeypatch.setattr(restricted_pickle, "MAX_INSTRUCTIONS", 100)
    assert read_pickle(b"]" * 99 + b".") == []
    with pytest.raises(ValueError, match="more than 100 instructions"):
        read_pickle(b"]" * 100 + b".")


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**99), 2**99) | st.text(max_size=9) | st.binary(min_size=1, max_size=9),
    lambda values: st.lists(values, max_size=5) | st.tuples(values, values) | st.tuples(values) | st.just(()),
    max_leaves=30,
)  # fmt: skip


@given(plain, st.integers(2, 5))
def test_plain_content_reads_as_the_pickle_module_reads_it(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol)) == value


@given(st.integers(-(10**30), 10**30) | st.text(max_size=20) | st.binary(min_size=1, max_size=20) | st.booleans())
def test_so_does_text_of_protocol_0(value):
    read = read_pickle(pickle.dumps([value], 0))
    assert read == [value] and type(read[0]) is type(value)


@given(st.binary(max_size=60), st.integers(0, 60))
def test_whatever_a_pickle_is_it_reads_or_raises_value_error(noise, position):
    valid = pickle.dumps(([b"ab", np.zeros(3, np.uint8)], [True]), 2)
    for content in (noise, valid[:position] + noise + valid[position + len(noise) :]):
        try:
            read_pickle(content)
        except ValueError as error:
            assert str(error).startswith("at byte ")


def test_what_is_kept_before_it_is_filled_is_filled_everywhere():
    first, second = read_pickle(pickle.dumps([np.arange(3, dtype=np.uint8)] * 2, 2))
    assert first is second and isinstance(first, Array) and first.content == b"\0\1\2"


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for name, content in {"a.png": picture(0), "b.jpg": picture(1, "JPEG"), "c.png": picture(2)}.items():
        (folder / name).write_bytes(content)
    (tmp_path / "pairs.txt").write_text("a.png b.jpg 1\nc.png a.png 0\nb.jpg a.png 1\n")
    return read_pair_list(tmp_path / "pairs.txt", folder)


def test_a_written_set_reads_as_it_was_here_and_in_insightfaces_way(tmp_path, pairs):
    path = tmp_path / "new" / "mine.bin"
    reply = write_verification_bin(pairs, path)
    assert reply == (3, 3, 0, sha256(path))
    contents = [pairs.images.read(i) for i in range(3)]
    read = read_verification_bin(path)
    assert (read.first.tolist(), read.second.tolist()) == (pairs.first.tolist(), pairs.second.tolist())
    assert read.genuine.tolist() == [True, False, True]
    assert [read.images.read(i) for i in range(3)] == contents
    with open(path, "rb") as file:
        bins, issame = pickle.load(file, encoding="bytes")  # our own file: this is how InsightFace reads it
    a, b, c = contents
    assert (bins, issame) == ([a, b, c, a, b, a], [True, False, True])
    assert all(type(answer) is bool for answer in issame) and type(bins) is list
    assert os.path.getsize(path) < sum(map(len, contents)) + 500  # a picture of many pairs is stored once
    assert os.listdir(path.parent) == ["mine.bin"]
    assert write_verification_bin(read, tmp_path / "again.bin") == reply
    with pytest.raises(UserError, match=r"mine\.bin' exists.*--force"):
        write_verification_bin(pairs, path)
    path.write_bytes(b"mine")
    write_verification_bin(pairs, path, force=True)
    assert sha256(path) == reply.sha256


@pytest.mark.parametrize(("kind", "size"), [("JPEG", (120, 112)), ("PNG", (224, 224)), ("BMP", (112, 112))])
def test_a_picture_of_another_size_or_format_is_named_or_encoded_again(tmp_path, pairs, kind, size):
    content = picture(3, kind, size)
    (tmp_path / "faces" / "c.png").write_bytes(content)
    path = tmp_path / "mine.bin"
    described = f"'c.png' is a {kind} of {size[0]}x{size[1]}"
    with pytest.raises(UserError, match=rf"1 of 3 pictures .*{described}.*--reencode"):
        write_verification_bin(pairs, path)
    assert not path.exists()
    assert write_verification_bin(pairs, path, reencode=True).num_reencoded == 1
    faces = read_verification_bin(path).images
    assert torch.equal(faces.decode(2), decode_face(content))  # what a network sees is the same
    assert Image.open(io.BytesIO(faces.read(2))).size == (112, 112)
    assert faces.read(0) == pairs.images.read(0)  # the others are as they were


@pytest.mark.parametrize("reencode", [False, True])
def test_a_broken_picture_stops_the_writing_and_leaves_nothing(tmp_path, pairs, reencode):
    (tmp_path / "faces" / "b.jpg").write_bytes(PICTURES[1][:300])
    with pytest.raises(UnreadablePicture, match=r"b\.jpg"):
        write_verification_bin(pairs, tmp_path / "mine.bin", reencode=reencode)
    (tmp_path / "faces" / "b.jpg").unlink()
    with pytest.raises(UnreadablePicture, match=r"b\.jpg.*No such file"):
        write_verification_bin(pairs, tmp_path / "mine.bin", reencode=reencode)
    assert sorted(os.listdir(tmp_path)) == ["faces", "pairs.txt"]
