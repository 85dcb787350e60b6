"""data/records.py and data/record_packing.py: record files of every kind are read alike, and written byte for byte."""

import dataclasses
import io
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from refusals import refused

from data import records
from data.faces import Faces, index_identity_folders, index_names, with_ages
from data.fast_jpeg import MAX_BYTES, decode_aligned, is_aligned_jpeg
from data.loaders import EpochSampler, batches, evaluation_loader, training_loader
from data.record_format import AGE_NOTE, MAGIC_WORD, RecordFile
from data.record_packing import ORIGIN_NAME, RecordWriter, as_parts, pack_folder, unpack_record_file
from data.records import index_record_file
from data.transforms import UnreadablePicture, decode_face
from meta import FILENAME_PATTERNS

MS1MV3 = FILENAME_PATTERNS["ms1mv3"]
NUM_FACES = 10
AGES = [3 * i for i in range(NUM_FACES)]


def noise(seed, size=(112, 112), mode="RGB"):
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="JPEG", **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


PICTURES = [encoded(noise(i), "PNG" if i == 4 else "JPEG") for i in range(NUM_FACES)]


def plain_record(payload):
    """A record without the magic word in it, written the obvious way."""
    return struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4)


def payload(key, labels, picture=b""):
    if isinstance(labels, (int, float)):
        return struct.pack("<IfQQ", 0, labels, key, 0) + picture
    return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0, key, 0, *labels) + picture


def write_records(path, contents, with_index=True, keys=None):
    """`contents` are the payloads in the order of the file; gives their offsets."""
    offsets, stored = [], b""
    for content in contents:
        offsets.append(len(stored))
        stored += plain_record(content)
    path.write_bytes(stored)
    keys = range(len(contents)) if keys is None else keys
    if with_index:
        lines = (f"{key}\t{offset}\n" for key, offset in zip(keys, offsets, strict=True))
        path.with_suffix(".idx").write_text("".join(lines))
    return offsets


def insightface(labels, ranges=None, note=b"", second=None):
    """Payloads of a whole file: header, a picture for each label, identity records of these ranges of keys."""
    if ranges is None:
        starts = [1 + i for i, label in enumerate(labels) if i == 0 or labels[i - 1] != label]
        ranges = list(zip(starts, [*starts[1:], len(labels) + 1], strict=True))
    a = len(labels) + 1
    contents = [payload(0, (a, a + len(ranges)), note)]
    for i, label in enumerate(labels):
        contents.append(payload(i + 1, label if second is None else (label, second[i]), PICTURES[i % NUM_FACES]))
    return contents + [payload(a + k, bounds) for k, bounds in enumerate(ranges)]


@pytest.fixture
def folder(tmp_path):
    """Ten faces of three identities with ages."""
    for i, picture in enumerate(PICTURES):
        place = tmp_path / "faces" / ("Ann", "Bob", "Zoë")[i // 4]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:02d}_age_{AGES[i]:02d}.{'png' if i == 4 else 'jpg'}").write_bytes(picture)
    return index_identity_folders(tmp_path / "faces", MS1MV3)


def assert_same_index(ours, theirs):
    assert ours.root == theirs.root
    for name in ("keys", "offsets", "identities"):
        assert getattr(ours, name).tolist() == getattr(theirs, name).tolist(), name
        assert getattr(ours, name).dtype == np.int64
    assert ours.identity_names == theirs.identity_names
    assert (ours.ages is None) == (theirs.ages is None)
    assert ours.ages is None or ours.ages.tolist() == theirs.ages.tolist()


def test_a_file_of_insightface_gives_pictures_identities_and_nothing_else(tmp_path):
    path = tmp_path / "train.rec"
    write_records(path, insightface([0, 0, 1, 2, 2]))
    index = index_record_file(path)
    assert (len(index), index.num_identities, index.ages) == (5, 3, None)
    assert index.identities.tolist() == [0, 0, 1, 2, 2]
    assert index.age_groups.tolist() == [-1] * 5
    assert [index.read(i) for i in range(5)] == PICTURES[:5]
    assert (index.name(3), index.key(3), index.root) == ("train.rec key 4", "4", str(path))
    for i in range(5):
        assert torch.equal(index.decode(i), decode_face(PICTURES[i]))


def test_a_missing_idx_is_rebuilt_by_scanning(tmp_path):
    path = tmp_path / "train.rec"
    write_records(path, insightface([0, 0, 1]))
    expected = index_record_file(path)
    path.with_suffix(".idx").unlink()
    assert_same_index(index_record_file(path), expected)
    assert index_record_file(path).fingerprint() == expected.fingerprint()
    shuffled = [payload(key, key // 3, PICTURES[key]) for key in (7, 2, 5)]  # ids that are keys, as im2rec's
    write_records(path, shuffled, with_index=False)
    assert index_record_file(path).keys.tolist() == [2, 5, 7]
    write_records(path, [payload(0, label, PICTURES[0]) for label in (1, 1, 0)], with_index=False)  # ids not given
    assert index_record_file(path).keys.tolist() == [0, 1, 2]
    contents = [payload(0, (3, 4)), *(payload(0, 5, PICTURES[i]) for i in (0, 1)), payload(0, (1, 3))]
    write_records(path, contents, with_index=False)
    assert index_record_file(path).keys.tolist() == [1, 2]


@pytest.mark.parametrize(
    "ranges",
    [[], [(1, 3), (3, 6)], [(1, 3), (3, 5), (5, 6)], [(1, 2), (3, 4), (4, 6)], [(1, 3), (3, 4), (4, 7)], [(9, 1)] * 3,
     [(1, float("nan")), (3, 4), (4, 6)], [(1, 2.5), (2.5, 4), (4, 6)], [(1, 1), (1, 3), (3, 4), (4, 6)]],
)  # fmt: skip
def test_identity_records_that_do_not_fit_are_not_believed(tmp_path, ranges):
    labels = [7, 7, 3, 5, 5]
    path = tmp_path / "train.rec"
    write_records(path, insightface(labels, ranges))
    index = index_record_file(path)
    assert index.identities.tolist() == [2, 2, 0, 1, 1]
    assert index.identity_names == ("3", "5", "7")


def test_identity_records_and_heads_give_the_same_and_the_former_are_read_where_they_fit(tmp_path, monkeypatch):
    labels = [7] * 5 + [3] + [5] * 4 + [900_000] * 2
    path = tmp_path / "train.rec"
    write_records(path, insightface(labels))
    quick = index_record_file(path)
    heads = []
    monkeypatch.setattr(
        RecordFile, "head", lambda self, offset, head=RecordFile.head: heads.append(0) or head(self, offset)
    )
    assert_same_index(index_record_file(path), quick)
    assert len(heads) <= 3 + 3 * 4  # header and the last record, an identity record and two pictures each
    monkeypatch.setattr(records, "_labels_by_identities", lambda *_: None)
    assert_same_index(index_record_file(path), quick)
    assert quick.identities.tolist() == [2] * 5 + [0] + [1] * 4 + [3] * 2
    assert quick.identity_names == ("3", "5", "7", "900000")
    monkeypatch.undo()
    write_records(path, insightface([4, 4, 2], [(3, 4), (1, 3)]))  # out of order
    assert index_record_file(path).identities.tolist() == [1, 1, 0]


def test_files_without_a_header_have_a_picture_under_every_key(tmp_path):
    path = tmp_path / "web.rec"
    write_records(path, [payload(k, label, PICTURES[k]) for k, label in enumerate((5, 1, 5))])
    index = index_record_file(path)
    assert (index.keys.tolist(), index.identities.tolist()) == ([0, 1, 2], [1, 0, 1])
    write_records(path, [payload(k, (label, 30), PICTURES[k]) for k, label in enumerate((5, 1, 5))])
    index = index_record_file(path)  # labels of two numbers, of which nobody says that the second is an age
    assert (index.keys.tolist(), index.identities.tolist(), index.ages) == ([0, 1, 2], [1, 0, 1], None)
    assert index.read(0) == PICTURES[0]
    write_records(path, [payload(k, 0, PICTURES[k]) for k in range(3)], keys=(30, 10, 20))
    index = index_record_file(path)
    assert (index.keys.tolist(), [index.read(i) for i in range(3)]) == ([10, 20, 30], [PICTURES[i] for i in (1, 2, 0)])


def test_second_labels_are_ages_only_where_the_header_says_so(tmp_path):
    path = tmp_path / "train.rec"
    write_records(path, insightface([0, 0, 1], second=(39, 0, -1)))
    assert index_record_file(path).ages is None
    write_records(path, insightface([0, 0, 1], second=(39, 0, -1), note=AGE_NOTE))
    index = index_record_file(path)
    assert (index.ages.tolist(), index.ages.dtype) == ([39, 0, -1], np.int16)
    assert index.age_groups.tolist() == [4, 0, -1]
    for ages in ((39, 0, 1.5), (39, 0, 121), (39, 0, float("nan"))):
        write_records(path, insightface([0, 0, 1], second=ages, note=AGE_NOTE))
        assert "key 3 has the label" in refused(index_record_file, path)
    write_records(path, insightface([0, 0, 1], note=AGE_NOTE))
    assert "key 1 has the label nan for the age" in refused(index_record_file, path)


def test_above_two_to_the_24_a_header_is_rounded_and_pictures_are_counted(tmp_path, monkeypatch):
    """The limit is put at 8 here, and the header's numbers are off by one as float32 would have them."""
    monkeypatch.setattr(records, "MAX_EXACT", 8)
    monkeypatch.setattr(records.np, "spacing", lambda number: 2)
    path = tmp_path / "train.rec"
    labels = [0] * 4 + [1] * 6
    for shift in (-1, 0, 1):
        contents = insightface(labels)
        contents[0] = payload(0, (11 + shift, 13 + shift))
        write_records(path, contents)
        index = index_record_file(path)
        assert index.keys.tolist() == list(range(1, 11))
        assert index.identities.tolist() == labels


@pytest.mark.parametrize("label", [-1, 1.5, float("nan"), float("inf"), 3e9])
def test_labels_that_are_no_identity_are_refused_with_their_key(tmp_path, label):
    path = tmp_path / "train.rec"
    write_records(path, insightface([0, 1, label, 2]))
    assert "train.rec' key 3 has the label" in refused(index_record_file, path)


def test_an_index_travels_to_other_processes_and_threads_without_a_file_position(tmp_path, folder):
    pack_folder(folder, tmp_path / "train.rec")
    index = index_record_file(tmp_path / "train.rec")
    assert index.read(0) == PICTURES[0]  # the file is open now
    copy = pickle.loads(pickle.dumps(index))
    assert [copy.read(i) for i in range(NUM_FACES)] == PICTURES
    rows = np.random.RandomState(0).permutation(np.repeat(np.arange(NUM_FACES), 40)).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(index.read, rows)) == [PICTURES[i] for i in rows]


def test_loaders_give_the_same_batches_from_records_as_from_folders(tmp_path, folder, workers=2):
    pack_folder(folder, tmp_path / "train.rec")
    index = index_record_file(tmp_path / "train.rec")
    index.decode(0)  # opened before the workers are forked
    for make in (
        lambda f: evaluation_loader(f, 4, workers),
        lambda f: training_loader(f, EpochSampler(len(f), 4, 1), workers=workers),
    ):
        for ours, theirs in zip(batches(make(index)), batches(make(folder)), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours[:4], theirs[:4], strict=True))


def test_descriptors_are_closed_with_the_index(tmp_path, folder):
    pack_folder(folder, tmp_path / "train.rec")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("needs /proc")
    for _ in range(5):
        index_record_file(tmp_path / "train.rec").read(0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_truncated_file_is_refused_with_the_place_and_the_number_of_good_records(tmp_path):
    path = tmp_path / "train.rec"
    offsets = write_records(path, insightface([0, 0, 1, 1]))
    content, places = path.read_bytes(), path.with_suffix(".idx").read_bytes()
    for with_index in (True, False):
        path.with_suffix(".idx").unlink(missing_ok=True)
        if with_index:
            path.with_suffix(".idx").write_bytes(places)
        for end in (offsets[3] + 5, offsets[3] + 500):
            path.write_bytes(content[:end])
            message = refused(index_record_file, path)
            assert f"the record at byte {offsets[3]:,} " in message
            assert "the 3 records before it are good, get the file again" in message
        path.write_bytes(content[: offsets[3]])  # at the end of a record
        message = refused(index_record_file, path)
        assert "the first 3 are good" in message if with_index else "says that there are 7 records, but 3" in message
    path.write_bytes(content.replace(MAGIC_WORD, b"some", 3).replace(b"some", MAGIC_WORD, 2))
    message = refused(index_record_file, path)
    assert f"byte {offsets[2]:,} does not have the magic word" in message
    assert "the 2 records before it are good" in message


@pytest.mark.parametrize(("place", "damage", "why"), [
    (8, struct.pack("<I", 4_000_000_000), "claims 4,000,000,000 labels in"),
    (4, struct.pack("<I", 0x1FFFFFFF), "has a length of 536,870,911, beyond the file's"),
    (7, b"\x40", "has a part of kind 2 at byte"),  # a middle part without a first
    (4, struct.pack("<I", 20), "has 20 bytes, fewer than the 24"),
])  # fmt: skip
def test_a_damaged_record_is_an_unreadable_picture_and_training_can_skip_it(tmp_path, place, damage, why):
    path = tmp_path / "train.rec"
    offsets = write_records(path, insightface([0, 0, 0, 1, 1]))
    content = bytearray(path.read_bytes())
    record = bytearray(content[offsets[2] :])
    record[place : place + len(damage)] = damage
    path.write_bytes(content[: offsets[2]] + bytes(record))
    index = index_record_file(path)  # by the identity records: the middle of an identity is not looked at
    for method in (index.read, index.decode):
        with pytest.raises(UnreadablePicture) as caught:
            method(1)
        assert str(caught.value).startswith(f"'{path} key 2' cannot be decoded, the record at byte {offsets[2]:,} ")
        assert why in str(caught.value)
    (batch,) = batches(training_loader(index, EpochSampler(5, 5, seed=0), on_bad_image="skip"))
    assert sorted(batch.indices.tolist()) == [0, 2, 2, 3, 4]
    assert why in batch.failures[0]
    result = unpack_record_file(index, tmp_path / "out", with_ages=False)
    assert (result.num_written, result.num_left_out) == (4, 1)
    assert why in result.left_out[0]


def test_records_without_a_picture_and_of_a_file_that_went_are_unreadable_and_named(tmp_path):
    path = tmp_path / "train.rec"
    write_records(path, [payload(0, 0, PICTURES[0]), payload(1, 0), payload(2, 0, b"text")])
    index = index_record_file(path)
    for i in (1, 2):
        with pytest.raises(UnreadablePicture, match=f"train.rec key {i}' cannot be decoded, it is not an image"):
            index.decode(i)
    index = pickle.loads(pickle.dumps(index))
    path.unlink()
    with pytest.raises(UnreadablePicture, match="No such file"):
        index.decode(0)


@pytest.mark.parametrize(
    ("text", "part"),
    [("", "holds no index"), ("\n\n", "holds no index"), ("0\t0\n1\n", "line 2, reads '1'"),
     ("0\t0\n1\t1.5\n", "line 2"), ("0\t0\nx\t8\n", "line 2, reads 'x"), ("0 0 0\n", "line 1"),
     ("0\t" + "9" * 30, "line 1"), ("0\t0\n0\t8\n", "the key 0 twice"), ("0\t0\n1\t0\n", "the offset 0 twice"),
     ("0\t0\n1\t2\n", "no multiples of 4"), ("0\t0\n-1\t8\n", "negative"), ("0\t-8\n", "negative"),
     ("0\t0\n1\t99999996\n", "up to byte 99,999,996: the first 1 are good"), ("0\t4\n", "does not have the magic")],
)  # fmt: skip
def test_a_wrong_idx_is_refused_in_words(tmp_path, text, part):
    path = tmp_path / "train.rec"
    write_records(path, insightface([0, 1]))
    path.with_suffix(".idx").write_text(text)
    assert part in refused(index_record_file, path)


def test_a_header_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "train.rec"
    contents = insightface([0, 1])
    for labels in ((0, 5), (5, 3), (float("nan"), 5), (3, 3.5), (-2, 5), (1e30, 1e30)):
        write_records(path, [payload(0, labels), *contents[1:]])
        assert "header" in refused(index_record_file, path)
    write_records(path, contents, keys=(0, 1, 3, 4, 5))
    assert "key 2 is missing from its index" in refused(index_record_file, path)
    write_records(path, [payload(0, (1, 1))])
    assert "holds no pictures" in refused(index_record_file, path)
    write_records(path, insightface([0, 0]))
    assert "1 identity, but at least 2" in refused(index_record_file, path, min_identities=2)


def test_what_is_no_record_file_is_refused(tmp_path):
    (tmp_path / "empty.rec").touch()
    os.mkfifo(tmp_path / "pipe.rec")
    (tmp_path / "folder.rec").mkdir()
    (tmp_path / "text.rec").write_text("no records in here")
    reasons = {"empty": "is empty", "pipe": "a folder or a device", "folder": "a folder or a device",
               "text": "is a text that begins", "gone": "No such file", "nul\0": "null byte"}  # fmt: skip
    for name, part in reasons.items():
        message = refused(index_record_file, f"{tmp_path}/{name}.rec", what="faces", how_to_get="elsewhere")
        assert part in message
        assert name in ("text", "nul\0") or "of faces" in message
        assert name == "text" or "elsewhere" in message


def test_the_property_file_has_to_agree(tmp_path):
    path, properties = tmp_path / "train.rec", tmp_path / "property"
    write_records(path, insightface([0, 0, 1]))
    for good in ("2,112,112", "2,112,112\n3\n", "2, 112, 112 \r\n", "2,112,112\nwhat newer builders add\n"):
        properties.write_text(good)
        assert len(index_record_file(path)) == 3
    for text, part in {"3,112,112": "says 3 identities, but", "2,112,112\n4": "says 4 pictures, but", "": "no property",
                       "2,112": "no property file", "two,112,112": "no property file"}.items():  # fmt: skip
        properties.write_text(text)
        message = refused(index_record_file, path)
        assert part in message
        assert str(properties) in message
    write_records(tmp_path / "val.rec", insightface([0]))
    assert len(index_record_file(tmp_path / "val.rec")) == 1  # property belongs to train.rec


def slow_parts(content):
    """The magic word taken out at multiples of 4, by looking at every word."""
    parts, begin = [], 0
    for place in range(0, len(content) // 4 * 4, 4):
        if content[place : place + 4] == MAGIC_WORD:
            parts.append(content[begin:place])
            begin = place + 4
    parts.append(content[begin:])
    kinds = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        struct.pack("<II", 0xCED7230A, kind << 29 | len(part)) + part + bytes(-len(part) % 4)
        for kind, part in zip(kinds, parts, strict=True)
    )


@given(st.lists(st.one_of(st.binary(max_size=6), st.just(MAGIC_WORD), st.just(MAGIC_WORD * 2)), max_size=8))
@example([b"abc", MAGIC_WORD])
@example([MAGIC_WORD[:2], MAGIC_WORD, MAGIC_WORD])
def test_a_record_with_the_magic_word_inside_is_cut_and_joined_again(tmp_path_factory, pieces):
    content = b"".join(pieces)
    stored = as_parts(content)
    assert stored == slow_parts(content)
    path = tmp_path_factory.getbasetemp() / "parts.rec"
    path.write_bytes(stored + plain_record(b"next"))
    file = RecordFile(str(path))
    assert file.read(0) == content
    assert file.read(len(stored)) == b"next"
    if len(content) >= 24 and int.from_bytes(content[:4], "little") == 0:
        assert file.head(0).end == len(stored)


@pytest.mark.parametrize("with_index", [True, False])
def test_pictures_that_hold_the_magic_word_survive(tmp_path, with_index):
    path = tmp_path / "train.rec"
    pictures = [PICTURES[0] + fill + MAGIC_WORD * 3 + b"x" for fill in (b"", b"1", b"12", b"123")]
    magic_number = int.from_bytes(MAGIC_WORD, "little")
    with open(path, "wb") as stored, open(path.with_suffix(".idx"), "w") as places:
        writer = RecordWriter(stored, places)
        for key, picture in enumerate(pictures):
            writer.write(key, (3,), picture)
        writer.write(magic_number, (4, 5), PICTURES[1])  # an id that looks like it: a part shorter than a head
    assert path.read_bytes().count(MAGIC_WORD) > 5
    if not with_index:
        path.with_suffix(".idx").unlink()
    index = index_record_file(path)
    assert index.keys.tolist() == [0, 1, 2, 3, magic_number]
    assert [index.read(i) for i in range(5)] == [*pictures, PICTURES[1]]
    assert index.identity_names == ("3", "4")


def test_packing_writes_insightfaces_layout_byte_for_byte(tmp_path, folder):
    path = tmp_path / "out" / "train.rec"
    packed = pack_folder(with_ages(folder, None), path)
    assert packed == (NUM_FACES, 3, False)
    labels = [0] * 4 + [1] * 4 + [2] * 2
    offsets = write_records(tmp_path / "plain.rec", insightface(labels, [(1, 5), (5, 9), (9, 11)]))
    assert path.read_bytes() == (tmp_path / "plain.rec").read_bytes()
    assert path.with_suffix(".idx").read_text() == "".join(f"{k}\t{offset}\n" for k, offset in enumerate(offsets))
    assert (tmp_path / "out" / "property").read_text() == "3,112,112\n"
    assert sorted(os.listdir(tmp_path / "out")) == ["property", "train.idx", "train.rec"]
    assert pack_folder(folder, path, force=True).with_ages
    write_records(tmp_path / "plain.rec", insightface(labels, [(1, 5), (5, 9), (9, 11)], AGE_NOTE, AGES))
    assert path.read_bytes() == (tmp_path / "plain.rec").read_bytes()


@pytest.mark.parametrize("ages", [True, False])
def test_pack_unpack_pack_gives_the_same_bytes(tmp_path, folder, ages):
    source = folder if ages else with_ages(folder, None)
    first, second = tmp_path / "1" / "train.rec", tmp_path / "2" / "train.rec"
    pack_folder(source, first)
    index = index_record_file(first)
    assert index.ages is None or index.ages.tolist() == AGES
    assert unpack_record_file(index, tmp_path / "unpacked", with_ages=ages) == (NUM_FACES, 0, 0, ())
    unpacked = index_identity_folders(tmp_path / "unpacked", MS1MV3 if ages else None)
    expected = [f"00000001/00000005{'_age_12' * ages}.png", f"00000001/00000006{'_age_15' * ages}.jpg"]
    assert [unpacked.name(4), unpacked.name(5)] == expected
    assert unpacked.identities.tolist() == folder.identities.tolist()
    assert [unpacked.read(i) for i in range(NUM_FACES)] == PICTURES
    pack_folder(unpacked, second)
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    pack_folder(index, tmp_path / "3" / "train.rec")  # records out of records
    assert (tmp_path / "3" / "train.rec").read_bytes() == first.read_bytes()
    write_records(tmp_path / "mixed.rec", [payload(k, label, PICTURES[k]) for k, label in enumerate((9, 4, 9, 4))])
    pack_folder(index_record_file(tmp_path / "mixed.rec"), tmp_path / "4" / "train.rec")
    index = index_record_file(tmp_path / "4" / "train.rec")  # the pictures of an identity come together
    assert index.identities.tolist() == [0, 0, 1, 1]
    assert [index.read(i) for i in range(4)] == [PICTURES[k] for k in (1, 3, 0, 2)]


def test_packing_replaces_only_with_force_and_leaves_nothing_after_an_error(tmp_path, folder):
    path = tmp_path / "out" / "train.rec"
    pack_folder(folder, path)
    before = path.read_bytes()
    for name in ("train.rec", "train.idx", "property"):
        only = tmp_path / name.replace(".", "_")
        only.mkdir()
        (only / name).touch()
        assert f"{name}' exists: " in refused(pack_folder, folder, only / "train.rec")
    (tmp_path / "faces" / "Bob" / "07_age_21.jpg").write_bytes(b"no picture")
    message = refused(pack_folder, folder, path, force=True)
    assert "07_age_21.jpg' in" in message
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == ["property", "train.idx", "train.rec"]
    (tmp_path / "faces" / "Bob" / "07_age_21.jpg").unlink()
    with pytest.raises(UnreadablePicture, match=r"07_age_21.jpg' cannot be decoded, No such file"):
        pack_folder(folder, tmp_path / "new" / "train.rec")
    assert os.listdir(tmp_path / "new") == []


def test_packing_refuses_what_no_record_file_can_hold(tmp_path, folder, monkeypatch):
    assert "ends in .rec" in refused(pack_folder, folder, tmp_path / "train.bin")
    nobody = index_names(folder.root, [folder.name(0)])
    assert "no identity" in refused(pack_folder, nobody, tmp_path / "train.rec")
    assert "no pictures" in refused(pack_folder, index_names(folder.root, []), tmp_path / "train.rec")
    monkeypatch.setattr("data.record_packing.MAX_EXACT", 1 + NUM_FACES + 3)
    assert pack_folder(folder, tmp_path / "train.rec", dry_run=True).num_pictures == NUM_FACES
    monkeypatch.setattr("data.record_packing.MAX_EXACT", NUM_FACES + 3)
    assert "needs 14 records, more than the 13" in refused(pack_folder, folder, tmp_path / "train.rec")


def test_unpacking_goes_on_where_it_was_stopped(tmp_path, folder):
    pack_folder(folder, tmp_path / "train.rec")
    index = index_record_file(tmp_path / "train.rec")

    def stop_after_four(items, total, what):
        assert total == NUM_FACES
        for count, item in enumerate(items):
            if count == 4:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        unpack_record_file(index, tmp_path / "out", True, progress=stop_after_four)
    kept = tmp_path / "out" / "00000000" / "00000001_age_00.jpg"
    time = kept.stat().st_mtime_ns
    assert unpack_record_file(index, tmp_path / "out", True, dry_run=True)[:2] == (6, 4)
    assert unpack_record_file(index, tmp_path / "out", True)[:2] == (6, 4)
    assert kept.stat().st_mtime_ns == time
    assert unpack_record_file(index, tmp_path / "out", True)[:2] == (0, 10)
    kept.write_bytes(b"other")
    assert "has 5 bytes, the picture in the record file" in refused(unpack_record_file, index, tmp_path / "out", True)
    assert unpack_record_file(index, tmp_path / "out", True, force=True)[:2] == (1, 9)
    assert kept.read_bytes() == PICTURES[0]


def test_unpacking_refuses_folders_that_hold_anything_else_and_ages_that_are_not_all_there(tmp_path, folder):
    pack_folder(folder, tmp_path / "train.rec")
    index = index_record_file(tmp_path / "train.rec")
    assert "is not empty" in refused(unpack_record_file, index, tmp_path / "faces", True)
    (tmp_path / "file").touch()
    assert "is no folder" in refused(unpack_record_file, index, tmp_path / "file", True)
    unpack_record_file(index, tmp_path / "out", True)
    for other, names in ((index, False), (with_ages(index, index.ages + 1), True)):  # each face would be there twice
        assert "the same names: give a new folder" in refused(unpack_record_file, other, tmp_path / "out", names)
    unpack_record_file(index, tmp_path / "dry", True, dry_run=True)
    assert not (tmp_path / "dry").exists()
    assert (tmp_path / "out" / ORIGIN_NAME).exists()
    for known, ages in ((0, None), (9, np.array([-1] + [30] * 9))):
        some = with_ages(index, ages)
        assert f"ages of {known} of its 10 pictures" in refused(unpack_record_file, some, tmp_path / "new", True)


def test_folders_and_records_keep_the_same_promises(tmp_path, folder):
    pack_folder(folder, tmp_path / "train.rec")
    record_index = index_record_file(tmp_path / "train.rec")
    promised = {name for name in vars(Faces) if not name.startswith("_")}
    for index, key in ((folder, "Ann/02_age_06.jpg"), (record_index, "3")):
        assert all(hasattr(index, name) for name in promised)
        assert index.key(2) == key
        assert index.read(2) == PICTURES[2]
        assert torch.equal(index.decode(2), decode_face(PICTURES[2]))
        assert index.ages.tolist() == AGES
        again = with_ages(index, np.array([-1] + [50] * 9))
        assert again.age_groups.tolist() == [-1] + [5] * 9
        assert (again.ages.dtype, again.fingerprint()) == (np.int16, index.fingerprint())
        assert with_ages(index, None).ages is None
        assert index.ages.tolist() == AGES
        for wrong in (-2, 121, 70_000):
            assert f"has the age {wrong}, outside 0 to 120" in refused(with_ages, index, np.array([wrong] + [3] * 9))
    assert folder.fingerprint() != record_index.fingerprint()


def test_a_fingerprint_changes_with_order_and_place_alone(tmp_path, folder):
    swapped = index_names(folder.root, [folder.name(i) for i in (1, 0, *range(2, NUM_FACES))])
    same = index_names("/elsewhere", [folder.name(i) for i in range(NUM_FACES)])
    assert same.fingerprint() == folder.fingerprint() != swapped.fingerprint()
    cut_elsewhere = [index_names("/", names).fingerprint() for names in (["ab", "c"], ["a", "bc"])]
    assert cut_elsewhere[0] != cut_elsewhere[1]
    pack_folder(folder, tmp_path / "train.rec")
    index = index_record_file(tmp_path / "train.rec")
    prints = {index.fingerprint()}
    for name in ("keys", "offsets"):
        prints.add(dataclasses.replace(index, **{name: getattr(index, name)[::-1]}).fingerprint())
    prints.add(dataclasses.replace(index, num_bytes=index.num_bytes + 4).fingerprint())
    assert len(prints) == 4


@pytest.mark.parametrize(
    "how",
    [{}, {"quality": 100, "subsampling": 0}, {"quality": 10, "subsampling": 1}, {"optimize": True},
     {"restart_marker_blocks": 3}, {"comment": b"a face" * 50}],
)  # fmt: skip
def test_plain_jpegs_take_the_fast_way_to_the_same_pixels(how):
    for image in (noise(3), Image.radial_gradient("L").resize((112, 112)).convert("RGB")):
        picture = encoded(image, **how)
        assert len(picture) < MAX_BYTES // 2
        face = decode_aligned(picture)
        assert face is not None
        assert (face.dtype, face.shape, face.is_contiguous()) == (torch.uint8, (3, 112, 112), True)
        assert torch.equal(face, decode_face(picture))


@pytest.mark.parametrize(
    "picture",
    [encoded(noise(1, (112, 113))), encoded(noise(1, (256, 256))), encoded(noise(1, mode="L")), PICTURES[4], b"",
     encoded(noise(1, mode="CMYK")), encoded(noise(1), progressive=True), PICTURES[0][:900], PICTURES[0][:150],
     PICTURES[0] + bytes(MAX_BYTES), encoded(noise(1), "WEBP"), encoded(noise(1), keep_rgb=True)],
)  # fmt: skip
def test_everything_else_is_left_to_decode_face(picture):
    assert decode_aligned(picture) is None


def test_a_header_that_pil_refuses_does_not_get_past_the_fast_way():
    picture = PICTURES[0]
    scan = picture.index(b"\xff\xda")
    assert is_aligned_jpeg(picture)
    for marker in (b"\xff\x01", b"\xff\xff", b"\x00\x00", b"\xff\xee", b"\xff\xd9"):
        assert not is_aligned_jpeg(picture[:scan] + marker + b"\x00\x02" + picture[scan:])
    frame = picture.index(b"\xff\xc0")
    end = frame + 2 + int.from_bytes(picture[frame + 2 : frame + 4], "big")
    assert not is_aligned_jpeg(picture[:frame] + picture[end:])
    assert not is_aligned_jpeg(picture[:end] + picture[frame:])


def test_damaged_jpegs_decode_alike_or_not_at_all():
    draw, num_decoded = np.random.RandomState(5), 0
    for number in range(200):
        picture = bytearray(PICTURES[number % 4])
        for place in draw.randint(0, len(picture), draw.randint(1, 4)):
            picture[place] ^= 1 << draw.randint(8)
        face = decode_aligned(bytes(picture))
        num_decoded += face is not None
        assert face is None or torch.equal(face, decode_face(bytes(picture)))
    assert 5 < num_decoded < 195
