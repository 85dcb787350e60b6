"""InsightFace verification sets (lfw.bin, agedb_30.bin, ...): a pickle of encoded pictures, two a pair, and answers.

They come from the internet, so they are read by utils.restricted_pickle, which runs nothing that a file asks for.
"""

import hashlib
import io
import os
import pickle
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from data.alignment.template import HOW_TO_ALIGN
from data.faces import UNKNOWN
from data.fast_jpeg import decode_aligned
from data.layout import is_drawn, mark_drawn
from data.pairs import PairList
from data.record_format import picture_extension
from data.transforms import FORMATS, decode_face
from meta import IMAGE_SIZE, UserError
from utils.files import Progress, check_is_new, new_folder, no_progress, sha256, write_text, written_beside
from utils.restricted_pickle import Array, read_pickle
from utils.wrong_files import wrong_file

MAX_FILE_BYTES = 4 << 30  # the largest that circulate have some 200 MB; all of it has to be in memory
PROTOCOL = 4  # of the pickles written here: Python 3.4 and newer read it
STORED_FORMATS = ("JPEG", "PNG")  # of the pictures written here: what every reader of such files decodes
IMAGES, PAIRS = "images", "pairs.csv"  # of an unpacked set
GET_AGAIN = "get the file again"
EXPECTED = "a pickle of (encoded pictures, answers), two pictures a pair, is expected"


@dataclass(frozen=True, eq=False)
class BinFaces:
    """The U different pictures of a verification set: an index of faces as those of data/faces.py.

    Picture i is `picture_bytes[picture_offsets[i]:picture_offsets[i + 1]]`, one buffer that worker processes share.
    """

    root: str  # absolute path of the .bin file
    picture_bytes: np.ndarray  # (B,) uint8
    picture_offsets: np.ndarray  # (U + 1,) int64
    numbers: np.ndarray  # (U,) int64, where the file has the picture first, counted from 0
    sha256: str  # of the file

    ages = None  # not known
    identity_names = ()
    num_identities = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, i: int) -> str:
        """Such as "lfw.bin image 17", counted from 0 as the file does: pair p is its images 2 p and 2 p + 1."""
        return f"{os.path.basename(self.root)} image {self.numbers[i]}"

    def key(self, i: int) -> str:
        """Such as "lfw.bin/17": so one file of embeddings can serve several sets."""
        return f"{os.path.basename(self.root)}/{self.numbers[i]}"

    def read(self, i: int) -> bytes:
        """The encoded picture."""
        i = range(len(self))[i]  # IndexError beyond the end, -1 is the last
        return self.picture_bytes[self.picture_offsets[i] : self.picture_offsets[i + 1]].tobytes()

    def decode(self, i: int) -> Tensor:
        """Picture i, uint8 (3, 112, 112).

        Raises:
            UnreadablePicture: it cannot be decoded.
        """
        content = self.read(i)
        face = decode_aligned(content)
        return decode_face(content, name=self.name(i)) if face is None else face

    @cached_property
    def identities(self) -> np.ndarray:
        """(U,) int64, all -1."""
        return np.full(len(self), UNKNOWN, dtype=np.int64)

    @property
    def age_groups(self) -> np.ndarray:
        """(U,) int64, all -1."""
        return np.full(len(self), UNKNOWN, dtype=np.int64)

    def fingerprint(self) -> str:
        """Differs where the pictures or their order differ."""
        return self.sha256

    state = fingerprint


@dataclass(frozen=True, eq=False)
class VerificationBin(PairList):
    """The pairs of a .bin file, in its order; its `images` are `BinFaces`, so nothing is ever missing."""

    sha256: str  # of the file: two different lfw.bin and cfp_fp.bin circulate


def find_verification_bins(root: str | Path) -> list[Path]:
    """The .bin files directly in `root` (face_dataset), sorted by name."""
    return sorted(path for path in Path(root).glob("*.bin") if path.is_file() and not path.name.startswith("."))


def read_verification_bin(path: str | Path) -> VerificationBin:
    """Pairs of a .bin file of InsightFace's, of Python 2 or 3: pictures as bytes or as uint8 arrays of encoded bytes.

    A picture that stands in the file several times is kept once. Pictures are not decoded here.

    Raises:
        UserError: for a file that can't be read, is no such pickle, or holds no pairs.
    """
    if wrong := wrong_file(path, "verification set", ("text",)):
        raise UserError(f"{str(path)!r} {wrong[0]}: {wrong[1]}; {EXPECTED}.")
    try:
        pictures, answers, sha256 = _read_content(path)
        genuine = _genuine(answers)
        if len(pictures) != 2 * len(genuine) or len(genuine) == 0:
            raise ValueError(f"it holds {len(pictures):,} pictures and {len(genuine):,} answers")
        positions, numbers, different = _each_once(pictures)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{str(path)!r} cannot be read as a verification set, {reason}: {EXPECTED}.") from error
    faces = BinFaces(
        root=os.path.abspath(path),
        picture_bytes=np.frombuffer(b"".join(different), dtype=np.uint8),
        picture_offsets=np.cumsum([0, *map(len, different)], dtype=np.int64),
        numbers=numbers,
        sha256=sha256,
    )
    return VerificationBin(faces, positions[0::2], positions[1::2], genuine, (), 0, sha256)


class WrittenBin(NamedTuple):
    """What `write_verification_bin` wrote."""

    num_pairs: int
    num_images: int  # different ones
    num_reencoded: int
    sha256: str


def write_verification_bin(
    pairs: PairList,
    path: str | Path,
    force: bool = False,
    reencode: bool = False,
    progress: Progress = no_progress,
) -> WrittenBin:
    """Writes the pairs as a .bin file that InsightFace's tools and `read_verification_bin` read.

    The encoded pictures are taken as they are. With `reencode` those that are no JPEG or PNG of 112x112 pixels are
    decoded and resized as for our networks, and stored as PNG, which loses nothing more. A mark of faces drawn by
    program goes along.

    Raises:
        UserError: `path` exists and `force` is not given; a picture that can't be decoded; or, without `reencode`,
            pictures of another size or format.
    """
    check_is_new(path, force)
    pictures, unfit = [], []
    for i in progress(range(len(pairs.images)), len(pairs.images), "reading pictures"):
        content, face = pairs.images.read(i), pairs.images.decode(i)  # a broken picture must not get into a set
        described = _described(content)
        if described not in [f"{kind} of {IMAGE_SIZE}x{IMAGE_SIZE}" for kind in STORED_FORMATS]:
            unfit.append(f"{pairs.images.name(i)!r} is a {described}")
            content = _as_png(face) if reencode else content
        pictures.append(content)
    if unfit and not reencode:
        raise UserError(
            f"{len(unfit):,} of {len(pairs.images):,} pictures are no JPEG or PNG of {IMAGE_SIZE}x{IMAGE_SIZE} pixels "
            f"({unfit[0]}): if their faces are aligned, give --reencode to have them resized and stored as PNG; if "
            f"not, {HOW_TO_ALIGN}."
        )
    # Of a picture of several pairs the pickle holds one copy and refers to it.
    images = [pictures[i] for pair in zip(pairs.first, pairs.second, strict=True) for i in pair]
    with written_beside(path) as file:
        pickle.dump((images, pairs.genuine.tolist()), file, protocol=PROTOCOL)
    mark_drawn(path, is_drawn(pairs.images.root))
    return WrittenBin(len(pairs), len(pictures), len(unfit), sha256(path))


class UnpackedBin(NamedTuple):
    """What `unpack_verification_bin` wrote."""

    num_pairs: int
    num_images: int


def unpack_verification_bin(path: str | Path, folder: str | Path, progress: Progress = no_progress) -> UnpackedBin:
    """Writes images/00017.jpg, by the number in the file and as they are encoded, and pairs.csv, in the file's order.

    Raises:
        UserError: for what `read_verification_bin` refuses, a picture of an unknown format, or a folder that holds
            something already.
    """
    pairs, names = read_verification_bin(path), []
    with new_folder(folder) as place:
        (place / IMAGES).mkdir()
        for i in progress(range(len(pairs.images)), len(pairs.images), "writing pictures"):
            content = pairs.images.read(i)
            ending = picture_extension(content)
            if ending is None:
                raise UserError(f"{pairs.images.name(i)!r} is no JPEG, PNG, WebP or BMP: {GET_AGAIN}.")
            names.append(f"{pairs.images.numbers[i]:05d}{ending}")
            (place / IMAGES / names[-1]).write_bytes(content)
        rows = zip(pairs.first.tolist(), pairs.second.tolist(), pairs.genuine.tolist(), strict=True)
        lines = ["name_a,name_b,label", *(f"{names[a]},{names[b]},{int(genuine)}" for a, b, genuine in rows)]
        write_text(place / PAIRS, "\n".join(lines) + "\n")
        mark_drawn(place, is_drawn(path))
    return UnpackedBin(len(pairs), len(names))


def _read_content(path: str | Path) -> tuple[Sequence, object, str]:
    """Pictures and answers of the pickle, as it has them, and the file's SHA-256; the file itself is let go."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # a device may have no end
        raise ValueError("it is a folder or a device")
    if status.st_size > MAX_FILE_BYTES:
        raise ValueError(f"it has {status.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
    content = Path(path).read_bytes()
    match read_pickle(content):
        case (list() | tuple() as pictures, list() | tuple() | Array() as answers):  # also a list of the two
            return pictures, answers, hashlib.sha256(content).hexdigest()
    raise ValueError("it is a pickle of something else")


def _genuine(answers: Sequence | Array) -> np.ndarray:
    """Answers as bool (P,): True, False, 1, 0, or numpy's."""
    if isinstance(answers, Array):
        if len(answers.shape) != 1:
            raise ValueError(f"its answers are an array of shape {answers.shape}")
        return _truths(answers.content, "answers")
    flat = bytearray()
    for number, answer in enumerate(answers):
        if isinstance(answer, Array) and answer.shape == () and answer.dtype == "bool":
            flat += answer.content
        elif isinstance(answer, int) and answer in (0, 1):
            flat.append(answer)
        else:
            raise ValueError(f"answer {number:,} is neither True nor False")
    return _truths(bytes(flat), "answers")


def _truths(content: bytes, what: str) -> np.ndarray:
    values = np.frombuffer(content, dtype=np.uint8)
    if (values > 1).any():
        raise ValueError(f"its {what} are not all 0 or 1")
    return values.astype(bool)


def _each_once(pictures: Iterable) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """Of each picture its position among the different ones, of these their first number, and themselves."""
    positions, numbers = [], []
    known: dict[bytes, int] = {}  # bytes keep their hash: one picture a million times costs little
    for number, picture in enumerate(pictures):
        content = picture.content if _is_flat(picture) else picture
        if not isinstance(content, bytes):
            raise ValueError(f"picture {number:,} is neither bytes nor a flat array of bytes")
        if content not in known:
            known[content] = len(known)
            numbers.append(number)
        positions.append(known[content])
    return np.array(positions, dtype=np.int64), np.array(numbers, dtype=np.int64), list(known)


def _is_flat(picture: object) -> bool:
    return isinstance(picture, Array) and picture.dtype == "uint8" and len(picture.shape) == 1


def _described(content: bytes) -> str:
    """Such as "JPEG of 112x112", from the header of a picture that can be decoded."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        return f"{picture.format} of {picture.width}x{picture.height}"


def _as_png(face: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(face.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()
