"""Properties of every reader, on inputs that hypothesis makes: what is written reads back; anything else is refused.

The same inputs in every run. tests/fuzz.py tries many more, and others.
"""

import hashlib
import json
import os
import shlex
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import fuzz
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from refusals import refused

from data import transforms
from data.filenames import parse_age
from data.pairs import read_pair_list
from data.transforms import decode_face
from meta import FILENAME_PATTERNS, IMAGE_EXTENSIONS, MAX_AGE, MIN_AGE, UserError
from models.purification import PURIFICATION_VARIANTS
from models.weights import read_weight_file
from training.checkpoint import FORMAT, checksum_path, load_checkpoint
from utils.cli import expand_argument_files

SHARED_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


def tries(count):
    """No deadline, since machines differ, and no random choice, since a red run has to be red again."""
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@contextmanager
def new_folder():
    """A fresh folder for each input; pytest's tmp_path would be one for all."""
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY) as name:
        yield Path(name)


@contextmanager
def only_user_errors():
    """Lets a result or a UserError of one printable line pass; any other exception is the test's failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd pickles
            yield
    except UserError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 3000


NAMES = {
    "ms1mv3": lambda identity, number, age: f"{identity}_age_{age}",
    "fgnet": lambda identity, number, age: f"{identity}A{age:02d}" + ("", "a", "b")[number % 3],
    "morph2": lambda identity, number, age: f"{identity}_{number}{'MF'[number % 2]}{age}",
    "utkface": lambda identity, number, age: f"{age}_{number % 2}_{number % 5}_{identity}",
}
DIGITS = st.text("0123456789", min_size=1, max_size=30)


@pytest.mark.parametrize("pattern", FILENAME_PATTERNS)
@tries(20)
@given(identity=DIGITS, number=st.integers(0, 10**6), extension=st.sampled_from(IMAGE_EXTENSIONS), upper=st.booleans())
def test_every_age_reads_back_from_every_name(pattern, identity, number, extension, upper):
    extension = extension.upper() if upper else extension
    for age in range(MIN_AGE, MAX_AGE + 1):
        name = NAMES[pattern](identity, number, age) + extension
        assert parse_age(f"some.A9_M_folder/{name}", FILENAME_PATTERNS[pattern]) == age


@pytest.mark.parametrize("pattern", FILENAME_PATTERNS)
@tries(100)
@given(name=st.one_of(st.text(), st.text("0123456789AMFab_./age", max_size=40), st.from_regex(r"\w*_\w*_\d+\.jpg")))
def test_any_text_gives_an_age_or_is_refused(pattern, name):
    try:
        age = parse_age(name, FILENAME_PATTERNS[pattern])
    except UserError as error:
        assert str(error).isprintable()
    else:
        assert isinstance(age, int)
        assert MIN_AGE <= age <= MAX_AGE


# Letters of file names that a list can hold: no blanks, no separator of folders.
LETTERS = st.characters(exclude_categories=["Cs"]).filter(
    lambda letter: not letter.isspace() and letter not in "/\0\ufeff"
)
PARTS = st.text(LETTERS, min_size=1, max_size=12).filter(lambda part: part not in (".", ".."))
IMAGE_NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
PAIRS = st.lists(st.tuples(IMAGE_NAMES, IMAGE_NAMES, st.booleans()), min_size=1, max_size=6)


@tries(100)
@given(
    pairs=PAIRS, line_end=st.sampled_from(["\n", "\r\n"]), blank=st.sampled_from([" ", "\t", "  "]), mark=st.booleans()
)
def test_a_written_pair_list_reads_back(pairs, line_end, blank, mark):
    with new_folder() as folder:
        for name in {name for pair in pairs for name in pair[:2]}:
            path = folder / "images" / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except OSError:  # one name is a folder of the other, or too long
                return
        if any((folder / "images" / name).is_dir() for pair in pairs for name in pair[:2]):
            return
        text = line_end.join(f"{a}{blank}{b}{blank}{int(genuine)}" for a, b, genuine in pairs)
        (folder / "pairs.txt").write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
        found = read_pair_list(folder / "pairs.txt", folder / "images")
        name = found.images.name
        read = [(name(a), name(b), bool(g)) for a, b, g in zip(found.first, found.second, found.genuine, strict=True)]
        assert read == pairs
        assert not found.missing and found.num_pairs_dropped == 0


@tries(150)
@given(
    content=st.one_of(st.binary(max_size=300), st.text("ab./\\01 \r\n\t\0\ufeff\u2028", max_size=60).map(str.encode))
)
@example(b"..a b/../.. 1")
def test_any_bytes_are_a_pair_list_inside_its_folder_or_refused(content):
    with new_folder() as folder, only_user_errors():
        for name in ("a", "b"):
            (folder / name).touch()
        (folder / "pairs.txt").write_bytes(content)
        images = read_pair_list(folder / "pairs.txt", folder, allow_missing=True).images
        for i in range(len(images)):
            assert Path(os.path.normpath(images.path(i))).is_relative_to(folder)


WORDS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20), max_size=8)


@tries(100)
@given(words=WORDS, blanks=st.sampled_from([" ", "\n", "\r\n", " # a comment it's\n"]))
@example(["#", "a#b", "it's", '"', "", "a\nb", "\r\n", "@x", "\ufeff", "\\"], "\n")
def test_quoted_words_read_back(words, blanks):
    with new_folder() as folder:
        path = folder / "some.args"
        path.write_bytes(blanks.join(map(shlex.quote, words)).encode())
        assert expand_argument_files(["first", f"@{path}", "last"]) == ["first", *words, "last"]


@tries(100)
@given(content=st.one_of(st.binary(max_size=300), st.text("a'\"#\\\r\n \0@-", max_size=60).map(str.encode)))
def test_any_bytes_are_words_or_refused(content):
    with new_folder() as folder, only_user_errors():
        path = folder / "some.args"
        path.write_bytes(content)
        assert all(isinstance(word, str) and "\0" not in word for word in expand_argument_files([f"@{path}"]))


PICTURES = {kind: fuzz.picture_seeds(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP")}
ALL_PICTURES = sum(PICTURES.values(), [])
BEGINNINGS = st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF\0\1\0\0WEBPVP8 ", b"GIF89a"])


@st.composite
def changed(draw, seeds):
    """A seed with some of its bytes replaced, taken out or put in, and perhaps an end cut off."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        content[start : start + draw(st.integers(0, 6))] = draw(st.binary(max_size=6))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


@pytest.fixture
def few_pixels(monkeypatch):
    monkeypatch.setattr(transforms, "MAX_PIXELS", 100_000)  # the real limit would cost half a second now and then


@pytest.mark.usefixtures("few_pixels")
@tries(250)
@given(content=st.one_of(st.tuples(BEGINNINGS, st.binary(max_size=200)).map(b"".join), changed(ALL_PICTURES)))
def test_any_bytes_are_a_face_or_refused(content):
    with only_user_errors():
        face = decode_face(content, size=16)
        assert (face.shape, face.dtype) == ((3, 16, 16), torch.uint8)


WEIGHTS, CHECKPOINTS = fuzz.weight_seeds(), fuzz.checkpoint_seeds()


@st.composite
def archives(draw, seeds):
    """Any bytes, a changed seed, or a seed repacked around a changed pickle so that every checksum is right."""
    way = draw(st.sampled_from(["bytes", "changed", "repacked"]))
    if way == "bytes":
        return draw(st.sampled_from([b"", b"PK\3\4", b"\x80\2", b"PK\5\6" + bytes(18)])) + draw(st.binary(max_size=200))
    if way == "changed":
        return draw(changed(seeds))
    return fuzz.repacked(draw(st.sampled_from(seeds)), draw(st.randoms(use_true_random=False)))


@tries(120)
@given(content=archives(WEIGHTS))
def test_any_bytes_are_a_weight_file_or_refused(content):
    with new_folder() as folder, only_user_errors():
        (folder / "weights.pth").write_bytes(content)
        weights = read_weight_file(folder / "weights.pth")
        assert weights.identity_branch or weights.age_branch
        assert all(isinstance(value, torch.Tensor) for value in weights.tensors.values())


@tries(120)
@given(content=archives(CHECKPOINTS))
def test_any_bytes_are_a_checkpoint_or_refused(content):
    with new_folder() as folder, only_user_errors():
        path = folder / "step_00000012.pth"
        path.write_bytes(content)
        checksum_path(path).write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
        assert load_checkpoint(path)["format"] == FORMAT


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)


@tries(40)
@given(damage=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_one_wrong_bit_in_a_checkpoint_is_found(damage, bit):
    content = bytearray(CHECKPOINTS[0])
    with new_folder() as folder:
        path = folder / "step_00000012.pth"
        checksum_path(path).write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")
        content[damage % len(content)] ^= 1 << bit
        path.write_bytes(content)
        refused(load_checkpoint, path, match="is damaged")


DESCRIPTIONS = st.dictionaries(
    st.sampled_from(["identity_branch", "age_branch", "x"]),
    PLAIN | st.fixed_dictionaries({"purification": PLAIN | st.sampled_from([1, "1", *PURIFICATION_VARIANTS])}),
)


@tries(80)
@given(reply=DESCRIPTIONS | PLAIN, damage=st.none() | st.integers(0, 60))
def test_any_description_is_followed_or_refused(reply, damage):
    with new_folder() as folder, only_user_errors():
        (folder / "tiny.pth").write_bytes(WEIGHTS[0])
        (folder / "tiny.json").write_text(json.dumps(reply)[:damage], encoding="utf-8")
        branch = read_weight_file(folder / "tiny.pth").identity_branch
        assert branch.purification in (1, "x_minus_linear_relu_bn", "x_plus_linear_relu_bn", "linear_relu_bn")
