"""Damaged and hostile files by the hundred thousand: every reader gives a result or raises ValueError, nothing else.

    python tests/fuzz.py                                  100,000 inputs for each reader
    python tests/fuzz.py --readers jpeg png --seed 7      two of them, other inputs

Each input is a valid seed file that was damaged in one to four places: bits, blocks, lengths, its end. The table says
how many were refused and accepted; a failure is shown with the number that makes it again (--only). Exit status 1
after a failure; a crash of the whole process and an endless loop are failures too. Linux and macOS.
"""

import argparse
import ctypes
import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_tensors

from data import transforms
from data.ages.names import undo_names
from data.ages.tables import read_age_table
from data.alignment.landmarks import COLUMNS, read_five_lines, read_point_table, read_pts
from data.faces import index_names
from data.fast_jpeg import decode_aligned
from data.filenames import parse_age
from data.index_cache import State, load_index, save_index
from data.pairs import read_pair_list
from data.record_format import AGE_NOTE, MAGIC_WORD
from data.record_packing import as_parts, record_content
from data.records import index_record_file
from data.releases.agedb import read_agedb_pairs
from data.releases.calfw import read_calfw_pairs
from data.releases.morph2 import read_morph2_table, read_subjects
from data.transforms import decode_face
from data.verification_bins import read_verification_bin
from evaluation.calibration import read_calibration
from evaluation.embeddings.feature_files import open_distractors, read_features
from meta import FILENAME_PATTERNS, UserError
from models.weights import read_weight_file
from training.checkpoint import FORMAT, checksum_path, load_checkpoint
from utils.cli import expand_argument_files

MAX_FAILURES_SHOWN = 5
MAX_SECONDS_AN_INPUT = 5.0  # a reader that thinks longer about some hundred bytes hangs
# Bytes of address space beyond what the program has: what asks for more fails at once instead of pushing others out.
# A string in a pickle may claim 4 GB, which Linux promises and never gives.
MEMORY = 16 << 30
MAX_PIXELS = 100_000  # in place of data.transforms' own limit, which would cost half a second now and then

# ---------------------------------------------------------------------------------------------------------- damage


def flip_bits(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 8))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def cut_off(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def take_out(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    del content[start : start + draw.randint(1, 64)]


def repeat_block(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    block = content[start : start + draw.randint(1, 64)]
    content[start:start] = block * draw.choice((1, 2, 30))


def put_random_bytes(content: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(content))
    count = draw.randint(1, 16)
    content[start : start + count] = draw.randbytes(draw.choice((count, draw.randint(0, 16))))


def change_length(content: bytearray, draw: random.Random) -> None:
    """A number of one to eight bytes becomes one that lengths go wrong at."""
    size, letter = draw.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q")))
    number = draw.choice((0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1, draw.getrandbits(8)))
    start = draw.randrange(len(content))
    content[start : start + size] = struct.pack(draw.choice("<>") + letter, number)


def put_word(content: bytearray, draw: random.Random) -> None:
    """Text that parsers of text go wrong at."""
    words = (b"\0", b"\r", b"\n", b"../", b"/", b"\\", b" ", b'"', b"'", b"#", b"\xff", b"\xef\xbb\xbf", b"\x1b[31m",
             b"-", b"9" * 30, b"[" * 40, b"{", b"null", b"1e999", b"NaN", "\u0663\u2028\u00b2".encode())  # fmt: skip
    start = draw.randrange(len(content) + 1)
    content[start:start] = draw.choice(words)


def splice(content: bytearray, draw: random.Random, other: bytes) -> None:
    """The beginning of one file and the end of another."""
    content[draw.randrange(len(content)) :] = other[draw.randrange(len(other)) :]


DAMAGES = (
    flip_bits,
    flip_bits,
    cut_off,
    take_out,
    repeat_block,
    put_random_bytes,
    change_length,
    change_length,
    put_word,
)


def damaged(seeds: list[bytes], draw: random.Random) -> bytes:
    """A seed, damaged in one to four places; now and then left whole."""
    content = bytearray(draw.choice(seeds))
    if draw.random() < 0.002:
        return bytes(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if content and draw.random() < 0.1:
            splice(content, draw, draw.choice(seeds))
        elif content:
            draw.choice(DAMAGES)(content, draw)
    return bytes(content)


# ----------------------------------------------------------------------------------------------------------- seeds


def picture_seeds(kind: str) -> list[bytes]:
    """Small pictures of this format in several of its modes."""
    colours = Image.effect_noise((12, 9), 60).convert("RGB")
    wide = Image.linear_gradient("L").resize((24, 5)).convert("RGB")
    modes = {
        "JPEG": [(colours, {}), (wide, {"progressive": True}), (colours.convert("L"), {}), (wide.convert("CMYK"), {})],
        "PNG": [(colours, {}), (colours.quantize(5), {"transparency": 0}), (wide.convert("LA"), {}),
                (colours.convert("1"), {}), (wide, {"save_all": True, "append_images": [wide.rotate(180)]})],
        "WEBP": [(colours, {}), (wide, {"lossless": True}), (colours.convert("RGBA"), {"quality": 20}),
                 (wide, {"save_all": True, "append_images": [wide.rotate(180)]})],
        "BMP": [(colours, {}), (colours.quantize(5), {}), (wide.convert("1"), {}), (wide.convert("RGBA"), {})],
    }  # fmt: skip
    if kind == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = 6
        modes[kind].append((colours, {"exif": exif, "icc_profile": b"profile" * 9, "comment": "a face"}))
    seeds = []
    for picture, how in modes[kind]:
        buffer = io.BytesIO()
        picture.save(buffer, kind, **how)
        seeds.append(buffer.getvalue())
    return seeds


def tiny_tensors() -> dict[str, torch.Tensor]:
    """The keys by which a file is known as iresnet18_quarter, on tensors of a few numbers."""
    tensors = {"backbone_id.conv1.weight": torch.zeros(16, 1, 1, 1), "backbone_id.spu.seq.2.weight": torch.zeros(2, 2)}
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            tensors[f"backbone_id.layer{layer}.{block}.bn1.weight"] = torch.zeros(1)
    return tensors


def torch_bytes(content: object, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def weight_seeds() -> list[bytes]:
    tensors = tiny_tensors()
    backbone = {key.removeprefix("backbone_id."): value for key, value in tensors.items()}
    age = {key.replace("backbone_id.", "backbone."): value for key, value in tensors.items()}
    return [
        torch_bytes(tensors),
        torch_bytes({f"module.{key}": value for key, value in age.items()}),
        torch_bytes(backbone, _use_new_zipfile_serialization=False),
        torch_bytes({"model": tensors, "branches": {"identity_branch": {"purification": 1}}, "config": {"stage": "x"}}),
    ]


def safetensors_seeds() -> list[bytes]:
    branches = {"identity_branch": {"backbone": "iresnet18_quarter", "purification": 1}}
    return [save_tensors(tiny_tensors(), {"branches": json.dumps(branches)}), save_tensors(tiny_tensors())]


def checkpoint_seeds() -> list[bytes]:
    content = {"format": FORMAT, "step": 12, "position": {"epoch": 0, "batch": 12}, "model": {"a.b": torch.zeros(3)},
               "optimisers": {"identity": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "lr": 0.1}}}  # fmt: skip
    return [torch_bytes(content), torch_bytes({**content, "scaler": {}, "none": None, "list": [True, "x", 2.5]})]


def repacked(archive: bytes, draw: random.Random) -> bytes:
    """A zip archive with one of its files damaged and every checksum right: damage that gets past the unpacking."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            files = {name: opened.read(name) for name in opened.namelist()}
    except zipfile.BadZipFile:  # the seeds of torch's older format are none
        return damaged([archive], draw)
    pickles = [name for name in files if name.endswith("data.pkl")]
    name = draw.choice(pickles if pickles and draw.random() < 0.8 else [*files])
    files[name] = damaged([files[name]], draw)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------------------------- readers


@dataclass(frozen=True)
class Reader:
    """Something that reads: valid seeds, how one is damaged, and what reads the result in a folder of its own."""

    name: str
    seeds: list[bytes]
    read: Callable[[bytes, Path], object]
    damage: Callable[[list[bytes], random.Random], bytes] = damaged


def read_names(content: bytes, folder: Path) -> None:
    """One file name a pattern; an age has to be one."""
    name = content.decode("utf-8", "surrogateescape")
    refusals = 0
    for pattern in FILENAME_PATTERNS.values():
        try:
            assert 0 <= parse_age(name, pattern) <= 120
        except UserError:
            refusals += 1
    if refusals == len(FILENAME_PATTERNS):
        raise UserError("no pattern fits")


def read_pairs(content: bytes, folder: Path) -> None:
    path = folder / "pairs.txt"
    path.write_bytes(content)
    pairs = read_pair_list(path, folder, allow_missing=True)
    root = os.path.abspath(folder)
    assert all(os.path.normpath(pairs.images.path(i)).startswith(root + os.sep) for i in range(len(pairs.images)))


def read_words(content: bytes, folder: Path) -> None:
    path = folder / "some.args"
    path.write_bytes(content)
    assert not any("\0" in word for word in expand_argument_files([f"@{path}"]))


def read_picture(content: bytes, folder: Path) -> None:
    face = decode_face(content, size=16)
    assert (face.shape, face.dtype) == ((3, 16, 16), torch.uint8)


def read_weights(content: bytes, folder: Path, name: str = "weights.pth") -> None:
    path = folder / name
    path.write_bytes(content)
    weights = read_weight_file(path)
    assert weights.identity_branch or weights.age_branch


def read_description(content: bytes, folder: Path) -> None:
    path = folder / "described.pth"
    path.with_suffix(".json").write_bytes(content)
    read_weight_file(path)


def read_checkpoint(content: bytes, folder: Path) -> None:
    """With the checksum of the damaged file beside it: the checksum's own refusals would show nothing."""
    path = folder / "step_00000012.pth"
    path.write_bytes(content)
    checksum_path(path).write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
    assert load_checkpoint(path)["format"] == FORMAT


def damaged_archive(seeds: list[bytes], draw: random.Random) -> bytes:
    return repacked(draw.choice(seeds), draw) if draw.random() < 0.6 else damaged(seeds, draw)


def bin_seeds() -> list[bytes]:
    """Verification sets of every protocol: bytes and arrays, and what Python 2 writes."""
    arrays = ([b"\xff\xd8 one", np.frombuffer(b"two", np.uint8).copy()] * 2, [True, np.False_])
    python_2 = b"\x80\x02]q\x01(U\x05\xff\xd8a\n'q\x02U\x03twoq\x03h\x02h\x03e]q\x04(\x88\x89e\x86."
    text = b"((lp0\nS'\\xff\\xd8a\\n'\np1\naS'two'\np2\na(lp3\nI01\natp4\n."
    plain = pickle.dumps(([b"one", b"two", b"one", b"one"], np.array([True, False])), 4)
    return [python_2, text, plain, *(pickle.dumps(arrays, protocol) for protocol in range(6))]


def read_bin(content: bytes, folder: Path) -> None:
    path = folder / "lfw.bin"
    path.write_bytes(content)
    pairs = read_verification_bin(path)
    assert 0 < len(pairs.images) <= 2 * len(pairs) and len(pairs.first) == len(pairs.second) == len(pairs)
    assert sum(len(pairs.images.read(i)) for i in range(len(pairs.images))) <= len(content)


def landmark_seeds() -> dict[str, list[bytes]]:
    """By extension: 68 points, five lines, and the three kinds of tables."""
    numbers = ["30.5", "40", "60", "41.25", "45", "55", "33", "70", "58", "71"]
    table = f'{",".join(COLUMNS)}\na/b.jpg,{",".join(numbers)}\n"c, d.jpg",{",".join(numbers)}\n'
    points = [[float(x), float(y)] for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
    row = "\t".join(numbers)
    return {
        ".pts": [b"version: 1\nn_points: 68\n{\n" + b"30.5 40\r\n" * 68 + b"}\n"],
        "_5loc_attri.txt": [b"30.5 40\n60 41.25\n45 55\n33 70\n58 71\n"],
        ".csv": [table.encode(), b"\xef\xbb\xbf" + table.replace("\n", "\r\n").encode()],
        ".json": [json.dumps({"a/b.jpg": points, "c.jpg": points}, indent=indent).encode() for indent in (None, 1)],
        ".lst": [f"0\t/x/a.jpg\t1\t{row}\n1\tb.jpg\t2\n0\tc.jpg\t3\t1\t2\t3\t4\t{row}\n".encode()],
    }


def read_landmarks(content: bytes, folder: Path, ending: str) -> None:
    path = folder / f"points{ending}"
    path.write_bytes(content)
    if ending in (".csv", ".json", ".lst"):
        table = read_point_table(path)
        found = [table.find(name) for name in ("a/b.jpg", "c.jpg", "x/a.jpg")]
    else:
        found = [read_pts(path, "fgnet"), read_pts(path, "ibug")] if ending == ".pts" else [read_five_lines(path)]
    assert all(points is None or (points.shape == (5, 2) and np.isfinite(points).all()) for points in found)


def release_list_seeds() -> dict[str, list[bytes]]:
    """By file name: CALFW's and AgeDB's pairs, MORPH's ages, a list of subjects."""
    from scipy.io import savemat

    calfw = "".join(f"A_{k}_0001.jpg {k + 1}\nA_{k}_0002.jpg {k + 1}\n" for k in range(10))
    calfw += "".join(f"A_{k}_0001.jpg 0\nB_{k}_0002.jpg 0\n" for k in range(10))
    splits = np.empty((10, 1), object)
    for k in range(10):
        names = np.empty((2, 2), object)
        for i in range(4):
            names[i % 2, i // 2] = {"path": f"A_{k}_{i}", "age": 5.0}
        splits[k, 0] = {"pairs": names, "labels": np.array([[1, -1]], np.int16)}
    buffers = [io.BytesIO(), io.BytesIO()]
    for compressed, buffer in enumerate(buffers):
        savemat(buffer, {"splits": splits}, do_compression=bool(compressed))
    return {
        "calfw.txt": [calfw.encode(), calfw.replace(" ", "\t").encode()],
        "agedb.txt": [b"a.jpg b.jpg 1\na.jpg c.jpg 0\n" * 10],
        "agedb.mat": [buffer.getvalue() for buffer in buffers],
        "ages.csv": [b"id_num,age,photo\n1,54,Album2/009055_1M54.JPG\n1,60,009055_2M60.JPG\n"],
        "subjects.csv": [b"subject,gallery,probe,setting\n000001,a.JPG,b.JPG,3000\n000002,c.JPG,d.JPG,10000\n"],
    }


def read_release_list(content: bytes, folder: Path, name: str) -> None:
    path = folder / f"release_{name}"
    path.write_bytes(content)
    if name == "ages.csv":
        assert all(0 <= row.age <= 120 for row in read_morph2_table(path).values())
        return
    if name == "subjects.csv":
        names = [name for subject in read_subjects(path, (3000, 10000)) for name in (subject.gallery, subject.probe)]
        assert not any("/" in name for name in names)
    else:
        pairs = read_calfw_pairs(path) if name == "calfw.txt" else read_agedb_pairs(path)
        assert len(pairs) % 20 == 0 and 2 * sum(pair.genuine for pair in pairs) == len(pairs)
        names = [name for pair in pairs for name in pair[:2]]
    assert not any(not part or part.startswith(".") for name in names for part in name.split("/"))


def record_seeds() -> list[bytes]:
    """Record files with and without a header, with ages, and with a record in parts."""
    picture = picture_seeds("JPEG")[0]
    labels = [(0,), (0,), (5,)]
    pictures = [(k, labels[k - 1], picture) for k in (1, 2, 3)]
    identities = [(4, (1, 3), b""), (5, (3, 4), b"")]
    files = [
        [(0, (4, 6), b""), *pictures, *identities],
        [(0, (4, 6), AGE_NOTE), *((k, (*label, 39), picture) for k, label, picture in pictures), *identities],
        [(7, (3,), picture), (9, (3, 30), picture + bytes(-len(picture) % 4) + MAGIC_WORD * 2)],
    ]
    return [b"".join(as_parts(record_content(*record)) for record in records) for records in files]


def read_records(content: bytes, folder: Path) -> None:
    """Without an index beside it: every record is found by a scan."""
    path = folder / "scanned.rec"
    path.write_bytes(content)
    read_all_records(path)


def read_all_records(path: Path) -> None:
    index = index_record_file(path)
    assert (index.identities >= 0).all() and (index.identities < index.num_identities).all()
    for i in range(len(index)):
        try:
            assert index.decode(i).shape == (3, 112, 112)
        except UserError as error:
            assert str(path) in str(error)


def read_record_index(content: bytes, folder: Path) -> None:
    path = folder / "indexed.rec"
    path.with_suffix(".idx").write_bytes(content)
    read_all_records(path)


def record_index_seeds() -> list[bytes]:
    """The true index of the first of the record files, and one of a part of its records, written otherwise."""
    content = record_seeds()[0]
    places = [k for k in range(0, len(content), 4) if content[k : k + 4] == MAGIC_WORD]
    whole = "".join(f"{key}\t{place}\n" for key, place in enumerate(places))
    return [whole.encode(), f"8 {places[1]}\r\n3 {places[2]}\r\n".encode()]


def read_property(content: bytes, folder: Path) -> None:
    (folder / "records").mkdir(exist_ok=True)
    path = folder / "records" / "train.rec"
    if not path.exists():
        path.write_bytes(record_seeds()[0])
    (folder / "records" / "property").write_bytes(content)
    index_record_file(path)


def kept_index_seeds() -> list[bytes]:
    """Indexes as they are kept, of a folder and of records."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "train.rec")
        path.write_bytes(record_seeds()[1])
        folder = index_names(name, ["a/1.jpg", "b/2.jpg"])
        folder = dataclasses.replace(folder, identities=np.arange(2), identity_names=("a", "b"))
        for number, index in enumerate((folder, index_record_file(path))):
            save_index(Path(name, f"{number}.npz"), index, State("state", 0))
        return [Path(name, f"{number}.npz").read_bytes() for number in range(2)]


def read_kept_index(content: bytes, folder: Path) -> None:
    path = folder / "kept.npz"
    path.write_bytes(content)
    sentences = []
    index = load_index(path, "/faces", State("state", 0), sentences.append)
    if index is None:
        raise UserError(sentences[0])
    assert (index.identities >= 0).all() and (index.identities < index.num_identities).all()
    assert all(index.name(i) for i in range(len(index)))


def aligned_seeds() -> list[bytes]:
    pictures = [Image.effect_noise((112, 112), 60).convert("RGB"), Image.radial_gradient("L").resize((112, 112))]
    seeds = []
    for how in ({}, {"quality": 90, "subsampling": 0}, {"optimize": True}, {"restart_marker_blocks": 3}):
        for picture in pictures:
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "JPEG", **how)
            seeds.append(buffer.getvalue())
    return seeds


def read_fast(content: bytes, folder: Path) -> None:
    """What the fast way decodes at all it decodes as the slow one."""
    face = decode_aligned(content)
    if face is None:
        raise UserError("left to decode_face")
    assert torch.equal(face, decode_face(content))


def age_table_seeds() -> list[bytes]:
    return [
        b"key,age\na.jpg,3\nb.jpg,40.5\nsub/c.jpg,120\n",
        b"sub/c.jpg\t5\n./b.jpg\t6\na.jpg\t7e0\na.jpg\t7\n",
        b'\xef\xbb\xbfid;Path;"Age"\r\n1;"b.jpg";1\r\n2;a.jpg;2\r\n3;sub//c.jpg;3\r\n',
        b"filename age\nsub/c.jpg 1\nx.jpg 2\na.jpg 0\n b.jpg 9\n",
    ]


def read_ages_of_names(content: bytes, folder: Path) -> None:
    path = folder / "ages.csv"
    path.write_bytes(content)
    table = read_age_table(path, index_names(folder, ["a.jpg", "b.jpg", "sub/c.jpg"]), allow_unknown=True)
    assert ((table.ages >= 0) & (table.ages <= 120)).all() and 0 <= table.num_unknown <= content.count(b"\n") * 3


def undo_seeds() -> list[bytes]:
    first = b'{"format": "names with ages 1", "root": "/", "num_names": 2}\n'
    return [
        first + b'{"old": "a/b.jpg", "new": "a/b_age_3.jpg"}\n{"old": "c_d.jpg", "new": "c-d_age_120.jpg"}\n',
        first + '{"new": "\\u00e9/b_age_0.jpg", "old": "é/b.jpg"}\n\n{"old": "1.J", "new": "1_age_7.J"}'.encode(),
    ]


def read_undo_file(content: bytes, folder: Path) -> None:
    path = folder / "undo.jsonl"
    path.write_bytes(content)
    assert sum(undo_names(path, dry_run=True)) >= 0


def feature_seeds() -> dict[str, list[bytes]]:
    """By file name: embeddings with names, and MegaFace's matrices."""
    rows, names = np.arange(1, 13, dtype=np.float32).reshape(3, 4), np.array(["a.jpg", "b.jpg", "sub/c.jpg"])
    archives, arrays = [io.BytesIO() for _ in range(3)], [io.BytesIO() for _ in range(3)]
    np.savez(archives[0], names=names, embeddings=rows)
    more = {"mirror": rows, "age_probabilities": np.ones((3, 8)) / 8, "made_by": np.array(['{"schema": 1}'])}
    np.savez_compressed(archives[1], names=names, embeddings=rows, **more)
    np.savez(archives[2], names=names.astype("S9"), embeddings=np.asfortranarray(rows.astype(">f8")), more=names)
    for version, dtype, buffer in zip(((1, 0), (2, 0), (1, 0)), ("<f4", ">f8", "<f2"), arrays, strict=True):
        np.lib.format.write_array(buffer, rows.astype(dtype), version)
    headers = ((12, 1, 4, 5), (3, 4, 16, 5), (3, 4, 4, 5), (1, 12, 48, 5))
    return {
        "features.npz": [buffer.getvalue() for buffer in archives],
        "features.npy": [buffer.getvalue() for buffer in arrays],
        "megaface.bin": [struct.pack("<4i", *header) + rows.tobytes() for header in headers],
    }


def read_feature_file(content: bytes, folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(content)
    if name == "features.npz":
        features = read_features(path)
        assert len(features.names) == len(features.embeddings) and all(features.names.tolist())
        assert sum(map(len, features.names.tolist())) <= 300 * len(content)
        pieces = [features.embeddings]
    else:
        pieces = [*open_distractors(path)]
    assert pieces and all(rows.ndim == 2 and rows.size and np.isfinite(rows).all() for rows in pieces)


def calibration_seeds() -> list[bytes]:
    row = {"threshold": 0.25, "impostors_allowed": 9, "tar_percent": 80.5, "tar_by_age_gap_percent": {"2-5": None}}
    reply = {"title": "FG-NET", "num_genuine": 90, "num_impostor": 99, "num_genuine_by_age_gap": {"2-5": 7},
            "at_far": {"1e-1": row}, "left_out": {"1e-2": "too few"}}  # fmt: skip
    model = {"name": "a", "weights": "a.pth", "weights_sha256": "cd", "model_fingerprint": "ab", "join": "add",
             "benchmarks": {"fgnet": reply}}  # fmt: skip
    return [json.dumps({"schema": 1, "models": [model] * count}, indent=1).encode() for count in (1, 2)]


def read_calibration_file(content: bytes, folder: Path) -> None:
    path = folder / "calibration.json"
    path.write_bytes(content)
    benchmark, point = read_calibration(path, "ab", "add").at(0.1)
    assert -1 <= point.threshold <= 1 and 0 <= point.tar_percent <= 100 and benchmark.num_impostor >= 0


def make_readers() -> list[Reader]:
    names = [b"05179510_age_39.jpg", b"person/001A43a.JPG", b"009055_1M54.JPG"]
    pairs = [b"a.jpg b.jpg 1\nsub/c.jpg ./a.jpg 0\n\n", b"\xef\xbb\xbfa.jpg\tb.jpg 1\r\nb.jpg a.jpg 0\r\n"]
    words = [b"# a recipe\n--count 5  # five\n--folder 'my faces/#2' --note \"it's\"\n", b"--epochs 3 \\\n 7\r\n"]
    branch = {"backbone": "iresnet18_quarter", "purification": 1}
    reply = [json.dumps({"identity_branch": branch, "age_branch": {**branch, "purification": "x_plus_linear_relu_bn"}})]
    return [
        Reader("names", names, read_names),
        Reader("pairs", pairs, read_pairs),
        Reader("bins", bin_seeds(), read_bin),
        Reader("records", record_seeds(), read_records),
        Reader("record idx", record_index_seeds(), read_record_index),
        Reader("property", [b"2,112,112\n", b"2,112,112\n3\n"], read_property),
        Reader("kept index", kept_index_seeds(), read_kept_index, damaged_archive),
        Reader("fast jpeg", aligned_seeds(), read_fast),
        *(
            Reader(f"points{ending[:5]}", seeds, functools.partial(read_landmarks, ending=ending))
            for ending, seeds in landmark_seeds().items()
        ),
        *(
            Reader(name, seeds, functools.partial(read_release_list, name=name))
            for name, seeds in release_list_seeds().items()
        ),
        *(
            Reader(
                name,
                seeds,
                functools.partial(read_feature_file, name=name),
                damaged_archive if name == "features.npz" else damaged,
            )
            for name, seeds in feature_seeds().items()
        ),
        Reader("calibration", calibration_seeds(), read_calibration_file),
        Reader("age table", age_table_seeds(), read_ages_of_names),
        Reader("undo file", undo_seeds(), read_undo_file),
        Reader("arguments", words, read_words),
        *(Reader(kind.lower(), picture_seeds(kind), read_picture) for kind in ("JPEG", "PNG", "WEBP", "BMP")),
        Reader("weights", weight_seeds(), read_weights, damaged_archive),
        Reader("safetensors", safetensors_seeds(), functools.partial(read_weights, name="weights.safetensors")),
        Reader("description", [text.encode() for text in reply], read_description),
        Reader("checkpoint", checkpoint_seeds(), read_checkpoint, damaged_archive),
    ]


# ------------------------------------------------------------------------------------------------------- the search


class Progress(ctypes.Structure):
    """How far a search is, in memory that the parent process sees after a crash too."""

    _fields_ = [(name, ctypes.c_int64) for name in ("number", "tried", "refused", "accepted", "failures")]


def input_of(reader: Reader, seed: int, number: int) -> bytes:
    """The input of this number: the same whatever was tried before."""
    return reader.damage(reader.seeds, random.Random(f"{seed}/{reader.name}/{number}"))


def try_input(reader: Reader, content: bytes, folder: Path) -> str:
    """What the reader made of it: "accepted", "refused", or else the failure in words."""
    began = time.perf_counter()
    try:
        reader.read(content, folder)
        outcome = "accepted"
    except ValueError as error:
        outcome = "refused"
        if isinstance(error, UserError) and not str(error).isprintable():
            return f"a message with control characters: {str(error)!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - began
    return outcome if seconds < MAX_SECONDS_AN_INPUT else f"{outcome} only after {seconds:.1f} seconds"


def search(reader: Reader, numbers: Sequence[int], seed: int, seconds: float, folder: Path, reply: Progress) -> None:
    """Tries inputs until the numbers or the seconds end; runs in a process of its own, for it may crash."""
    if sys.platform == "linux":
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    warnings.simplefilter("ignore")
    transforms.MAX_PIXELS = MAX_PIXELS
    end = time.monotonic() + seconds
    for number in numbers:
        reply.number = number
        outcome = try_input(reader, input_of(reader, seed, number), folder)
        reply.tried += 1
        reply.accepted += outcome == "accepted"
        reply.refused += outcome == "refused"
        if outcome not in ("accepted", "refused"):
            reply.failures += 1
            if reply.failures <= MAX_FAILURES_SHOWN:
                print(f"{reader.name} --seed {seed} --only {number}: {outcome}", file=sys.stderr, flush=True)
        if time.monotonic() > end:
            break


def search_apart(reader: Reader, numbers: Sequence[int], seed: int, seconds: float, folder: Path) -> Progress:
    """The search in a child process; its crash or its hanging is a failure."""
    fork = multiprocessing.get_context("fork")
    reply = fork.Value(Progress, lock=False)
    child = fork.Process(target=search, args=(reader, numbers, seed, seconds, folder, reply))
    child.start()
    child.join(seconds + MAX_SECONDS_AN_INPUT * 4)
    if child.is_alive():
        child.kill()
        child.join()
    if child.exitcode != 0:
        reply.failures += 1
        print(f"{reader.name} --seed {seed} --only {reply.number}: the process ended by {child.exitcode}",
              file=sys.stderr)  # fmt: skip
    return reply


def write_what_readers_look_for(folder: Path) -> None:
    (folder / "sub").mkdir()
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        (folder / name).touch()
    (folder / "described.pth").write_bytes(weight_seeds()[0])
    (folder / "indexed.rec").write_bytes(record_seeds()[0])


def main() -> int:
    readers = {reader.name: reader for reader in make_readers()}
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--readers", nargs="+", choices=[*readers], default=[*readers])
    flags.add_argument("--inputs", type=int, default=100_000, help="for each reader")
    flags.add_argument("--seconds", type=float, default=300, help="for each reader at most")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--only", type=int, help="try the input of this number alone")
    chosen = flags.parse_args()
    numbers = range(chosen.inputs) if chosen.only is None else [chosen.only]
    failures = 0
    print(f"{'reader':12}{'tried':>9}{'refused':>9}{'accepted':>9}{'failures':>9}{'seconds':>9}")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        write_what_readers_look_for(Path(name))
        for reader in (readers[name] for name in chosen.readers):
            began = time.monotonic()
            reply = search_apart(reader, numbers, chosen.seed, chosen.seconds, Path(name))
            failures += reply.failures
            print(f"{reader.name:12}{reply.tried:9,}{reply.refused:9,}{reply.accepted:9,}{reply.failures:9,}"
                  f"{time.monotonic() - began:9.1f}", flush=True)  # fmt: skip
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
