"""Damaged and hostile files by the hundred thousand: every reader gives a result or raises ValueError, nothing else.

    python tests/fuzz.py                                  100,000 inputs for each reader
    python tests/fuzz.py --readers jpeg png --seed 7      two of them, other inputs

Each input is a valid seed file that was damaged in one to four places: bits, blocks, lengths, its end. The table says
how many were refused and accepted; a failure is shown with the number that makes it again (--only). Exit status 1
after a failure; a crash of the whole process and an endless loop are failures too. Linux and macOS.
"""

import argparse
import ctypes
import hashlib
import io
import json
import multiprocessing
import os
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

import torch
from PIL import Image

from data import transforms
from data.filenames import parse_age
from data.pairs import read_pair_list
from data.transforms import decode_face
from meta import FILENAME_PATTERNS, UserError
from models.weights import read_weight_file
from utils.checkpoint import FORMAT, checksum_path, load_checkpoint
from utils.config import expand_argument_files

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
    name = next(name for name in files if name.endswith("data.pkl")) if draw.random() < 0.8 else draw.choice([*files])
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


def read_weights(content: bytes, folder: Path) -> None:
    path = folder / "weights.pth"
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


def make_readers() -> list[Reader]:
    names = [b"05179510_age_39.jpg", b"person/001A43a.JPG", b"009055_1M54.JPG"]
    pairs = [b"a.jpg b.jpg 1\nsub/c.jpg ./a.jpg 0\n\n", b"\xef\xbb\xbfa.jpg\tb.jpg 1\r\nb.jpg a.jpg 0\r\n"]
    words = [b"# a recipe\n--count 5  # five\n--folder 'my faces/#2' --note \"it's\"\n", b"--epochs 3 \\\n 7\r\n"]
    branch = {"backbone": "iresnet18_quarter", "purification": 1}
    told = [json.dumps({"identity_branch": branch, "age_branch": {**branch, "purification": "x_plus_linear_relu_bn"}})]
    return [
        Reader("names", names, read_names),
        Reader("pairs", pairs, read_pairs),
        Reader("arguments", words, read_words),
        *(Reader(kind.lower(), picture_seeds(kind), read_picture) for kind in ("JPEG", "PNG", "WEBP", "BMP")),
        Reader("weights", weight_seeds(), read_weights, damaged_archive),
        Reader("description", [text.encode() for text in told], read_description),
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


def search(reader: Reader, numbers: Sequence[int], seed: int, seconds: float, folder: Path, told: Progress) -> None:
    """Tries inputs until the numbers or the seconds end; runs in a process of its own, for it may crash."""
    if sys.platform == "linux":
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, in_use + MEMORY))
    warnings.simplefilter("ignore")
    transforms.MAX_PIXELS = MAX_PIXELS
    end = time.monotonic() + seconds
    for number in numbers:
        told.number = number
        outcome = try_input(reader, input_of(reader, seed, number), folder)
        told.tried += 1
        told.accepted += outcome == "accepted"
        told.refused += outcome == "refused"
        if outcome not in ("accepted", "refused"):
            told.failures += 1
            if told.failures <= MAX_FAILURES_SHOWN:
                print(f"{reader.name} --seed {seed} --only {number}: {outcome}", file=sys.stderr, flush=True)
        if time.monotonic() > end:
            break


def search_apart(reader: Reader, numbers: Sequence[int], seed: int, seconds: float, folder: Path) -> Progress:
    """The search in a child process; its crash or its hanging is a failure."""
    fork = multiprocessing.get_context("fork")
    told = fork.Value(Progress, lock=False)
    child = fork.Process(target=search, args=(reader, numbers, seed, seconds, folder, told))
    child.start()
    child.join(seconds + MAX_SECONDS_AN_INPUT * 4)
    if child.is_alive():
        child.kill()
        child.join()
    if child.exitcode != 0:
        told.failures += 1
        print(f"{reader.name} --seed {seed} --only {told.number}: the process ended by {child.exitcode}",
              file=sys.stderr)  # fmt: skip
    return told


def write_what_readers_look_for(folder: Path) -> None:
    (folder / "sub").mkdir()
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        (folder / name).touch()
    (folder / "described.pth").write_bytes(weight_seeds()[0])


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
            told = search_apart(reader, numbers, chosen.seed, chosen.seconds, Path(name))
            failures += told.failures
            print(f"{reader.name:12}{told.tried:9,}{told.refused:9,}{told.accepted:9,}{told.failures:9,}"
                  f"{time.monotonic() - began:9.1f}", flush=True)  # fmt: skip
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
