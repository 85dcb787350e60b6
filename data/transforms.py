"""Pictures to what a network takes: bytes (uint8) until the device, a fourth of the floats' memory and transfer."""

import functools
import io
import os
import stat
import warnings
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from meta import IMAGE_SIZE, PIXEL_MEAN, PIXEL_SCALE, UserError
from utils.wrong_files import wrong_file

# The formats of meta.IMAGE_EXTENSIONS, whatever a file's extension says: each further decoder is one more that a file
# from anybody can attack, and of a GIF nobody knows which of its pictures is meant.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
# Of photographs, which are aligned once: what cameras and phones write too. HEIF is there after `heif_is_read`.
PHOTO_FORMATS = (*FORMATS, "TIFF", "GIF", "AVIF", "HEIF")
TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
HEIF_BRANDS = (b"hei", b"hev", b"mif1", b"msf1")  # what follows "ftyp" in the first bytes (ISO/IEC 23008-12)
# Limits on what the header claims, asked before anything is allocated: a file of some bytes can claim gigabytes.
MAX_PIXELS = 64_000_000  # more than cameras for portraits take; 256 MB as RGBA, in each worker
MAX_SIDE = 65_535  # JPEG's own limit; the resizing filter of one line of MAX_PIXELS would take 2 GB
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # of PIL's, which begins above MAX_PIXELS
warnings.filterwarnings("ignore", message="Corrupt EXIF data")  # by which a photograph may be turned, no more


class UnreadablePicture(UserError):
    """A picture that cannot be decoded: its `name`, and the `reason` in words."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # these are what travels from a worker process to the main one
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name!r} cannot be decoded, {self.reason}: replace it or leave it out."


def decode_face(
    source: str | Path | bytes | BinaryIO, size: int = IMAGE_SIZE, name: str = "", scaled: bool = False
) -> Tensor:
    """RGB picture as uint8 (3, size, size), decoded by `decode_picture`, resized by PIL's bicubic filter as published.

    With `scaled` a JPEG of at least twice the size is decoded at a half, a quarter or an eighth of its own: faster, and
    its pixels are not quite the published ones.

    Raises:
        UnreadablePicture: as `decode_picture` does.
    """
    picture = decode_picture(source, name, size if scaled else None)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.array(picture)  # (size, size, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (3, size, size)


def decode_picture(source: str | Path | bytes | BinaryIO, name: str = "", at_least: int | None = None) -> Image.Image:
    """RGB picture in its own size, 8 bits a channel; EXIF does not turn it.

    `at_least` lets a JPEG be decoded at a half, a quarter or an eighth of its size, with no side below that.

    What is transparent is laid on black, the colour that alignment fills the border of a face with. (The published
    loader shows the colours that the file keeps below, seen by nobody; its data sets hold no transparency.) Of several
    pictures in one file the first counts. Of RGB with 16 bits a channel the upper 8 count.
    `name` stands in messages for a source that is no path.

    Raises:
        UnreadablePicture: for a file that is missing, truncated, no image, grey with 16 bits, or too large.
    """
    try:
        with Image.open(_checked_source(source), formats=FORMATS) as picture:
            return _to_rgb(picture, at_least)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise almost anything on broken files: SyntaxError, struct.error, ...
        shown = name or (os.fspath(source) if isinstance(source, (str, Path)) else "an image in memory")
        raise UnreadablePicture(shown, _reason(error)) from error


class Photograph(NamedTuple):
    """A picture as it is stored, and how its camera meant it to be turned."""

    picture: Image.Image  # RGB
    orientation: int  # of EXIF: 1 as it is, 2 to 8 turned or mirrored

    def upright(self) -> Image.Image:
        turn = TURNS.get(self.orientation)
        return self.picture if turn is None else self.picture.transpose(turn)


def decode_photograph(source: str | Path, name: str = "") -> Photograph:
    """A picture of PHOTO_FORMATS in its own size, its pixels as `decode_picture` gives them.

    Raises:
        UnreadablePicture: as `decode_picture` does, and for a format that needs a package which is not installed.
    """
    can_read_heif = heif_is_read()
    formats = [kind for kind in PHOTO_FORMATS if kind in Image.OPEN]
    try:
        with Image.open(_checked_source(source), formats=formats) as picture:
            _check_size(picture)
            picture.load()  # PIL turns some formats by itself, and takes the orientation away then
            return Photograph(_to_rgb(picture, None), orientation(picture))
    except MemoryError:
        raise
    except Exception as error:
        reason = _reason(error, PHOTO_FORMATS)
        if isinstance(error, UnidentifiedImageError):
            reason = _missing_decoder(source, can_read_heif) or _other_file(source) or reason
        raise UnreadablePicture(name or os.fspath(source), reason) from error


def orientation(picture: Image.Image) -> int:
    """EXIF's, 1 where there is none or it can't be read."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF raises almost anything, and says nothing about turning
        return 1


@functools.cache
def heif_is_read() -> bool:
    """Whether HEIC pictures can be read: where pillow-heif is installed, which this makes known to PIL."""
    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _missing_decoder(source: str | Path, can_read_heif: bool) -> str:
    """Which package would read the file; empty where none is known."""
    with open(source, "rb") as file:
        start = file.read(12)
    if start[4:8] != b"ftyp":
        return ""
    if start[8:12] in (b"avif", b"avis"):
        return "it is AVIF, which Pillow reads from version 11.3 on: update it"
    if start[8:12].startswith(HEIF_BRANDS) and not can_read_heif:
        return "it is HEIC, which only the package pillow-heif reads: pip install pillow-heif"
    return ""


def _other_file(source: str | Path) -> str:
    """What a download that went wrong is, and what to do; empty where the file is none."""
    wrong = wrong_file(source, "picture", ("text", "picture"))
    return f"it {wrong[0]} ({wrong[1]})" if wrong else ""


def picture_size(source: str | Path | bytes) -> tuple[int, int]:
    """Width and height in pixels as the header says; nothing is decoded.

    Raises:
        UnreadablePicture: for a file that is missing or no image.
    """
    try:
        with Image.open(_checked_source(source), formats=FORMATS) as picture:
            return picture.size
    except MemoryError:
        raise
    except Exception as error:  # PIL raises almost anything on broken files
        shown = "an image in memory" if isinstance(source, bytes) else os.fspath(source)
        reason = f"its header is broken or of no known format ({type(error).__name__})"
        raise UnreadablePicture(shown, reason) from error


def _checked_source(source: str | Path | bytes | BinaryIO) -> str | Path | BinaryIO:
    """What PIL can open without waiting for ever: of paths only those of files."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, (str, Path)) and not stat.S_ISREG(os.stat(source).st_mode):  # a pipe would never end
        raise ValueError("it is a folder or a device, not a file")
    return source


def _check_size(picture: Image.Image) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ValueError(f"it claims {width} x {height} pixels, more than {MAX_PIXELS:,} or {MAX_SIDE:,} on a side")


def _to_rgb(picture: Image.Image, at_least: int | None) -> Image.Image:
    """The pixels, decoded here; so far PIL has read the header alone."""
    _check_size(picture)
    if at_least is not None:
        picture.draft("RGB", (at_least, at_least))  # libjpeg decodes at a fraction of the size; other formats ignore it
    # PIL would cut values above 255 to white without a word.
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are {picture.mode}, not 8 bits a channel")
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        picture = Image.new("RGB", colours.size)  # black
        picture.paste(colours, mask=colours)
    return picture.convert("RGB")


def to_network_input(images: Tensor, channels_last: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (N, 3, H, W) -> the same pixels in [-1, 1], on the device of `images`."""
    assert images.dtype == torch.uint8, f"pixels have to be uint8, not {images.dtype}"
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    # x - 127.5 is an odd multiple of 1/2 below 128: exact even in bfloat16's 8 bits, so only the division rounds.
    return images.to(dtype=dtype, memory_format=memory_format).sub_(PIXEL_MEAN).div_(PIXEL_SCALE)


def hflip(images: Tensor, flips: Tensor | None = None) -> Tensor:
    """The images (..., H, W), left and right exchanged; with `flips`, bool (N,), those (N, 3, H, W) that it names."""
    mirrored = images.flip(-1)
    if flips is None:
        return mirrored
    flips = flips.to(device=images.device, dtype=torch.bool, non_blocking=True)
    return torch.where(flips[:, None, None, None], mirrored, images)  # flips as (N, 1, 1, 1)


# What a stream of random numbers is for; a purpose of 0 would give the stream without one.
CROP, COLOUR = 1, 2


def random_stream(seed: int, step: int, *purpose: int) -> torch.Generator:
    """The generator, on the CPU, of all that a step draws for one purpose; without one: mirroring, CLUB's negatives."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, step, *purpose)).generate_state(1)[0]))


AUGMENT_PROBABILITY = 0.2  # of each kind of change, as AdaFace takes it
SMALLEST_BOX = 0.5  # of a side
COLOUR_RANGE = (0.5, 1.5)  # factors of brightness, contrast and saturation
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)


def augment(images: Tensor, seed: int, step: int, start: int, batch_size: int) -> Tensor:
    """The images (N, 3, H, W) in [-1, 1], some of them cropped (black outside of a box) or with other colours.

    They are the images `start` to `start + N` of a whole batch, for which `seed` and `step` decide all that is random:
    however many processes share it, an image is changed alike.
    Source of the idea: Kim, Jain, Liu, "AdaFace", CVPR 2022, section 4.1 (whose low resolution is left out).
    """
    own = slice(start, start + len(images))
    boxes, colours = (
        torch.rand(batch_size, size, generator=random_stream(seed, step, purpose))[own].to(
            images.device, non_blocking=True
        )
        for purpose, size in ((CROP, 5), (COLOUR, 4))
    )
    return _in_other_colours(_in_boxes(images, boxes), colours)


def _in_boxes(images: Tensor, draws: Tensor) -> Tensor:  # draws (N, 5)
    changed, sizes, places = draws[:, 0] < AUGMENT_PROBABILITY, draws[:, 1:3], draws[:, 3:5]
    sizes = SMALLEST_BOX + (1 - SMALLEST_BOX) * sizes  # (N, 2) of height and width
    low = places * (1 - sizes)
    kept = torch.ones_like(images[:, :1], dtype=torch.bool)  # (N, 1, H, W)
    for axis in (0, 1):
        side = images.shape[2 + axis]
        centres = (torch.arange(side, device=images.device) + 0.5) / side  # (side,)
        inside = (centres >= low[:, axis, None]) & (centres <= (low + sizes)[:, axis, None])  # (N, side)
        kept = kept & (inside[:, None, :, None] if axis == 0 else inside[:, None, None, :])
    return torch.where(kept | ~changed[:, None, None, None], images, -1.0)


def _in_other_colours(images: Tensor, draws: Tensor) -> Tensor:  # draws (N, 4)
    low, high = COLOUR_RANGE
    brightness, contrast, saturation = (low + (high - low) * draws[:, 1:]).t()[:, :, None, None, None]  # (N, 1, 1, 1)
    pixels = (images + 1) / 2 * brightness
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    pixels = (pixels * weights).sum(1, keepdim=True).lerp(pixels, saturation)
    mean = (pixels * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pixels = mean.lerp(pixels, contrast).clamp(0, 1)
    changed = draws[:, 0] < AUGMENT_PROBABILITY
    return torch.where(changed[:, None, None, None], pixels * 2 - 1, images)


def _reason(error: Exception, formats: tuple[str, ...] = FORMATS) -> str:
    if isinstance(error, UnidentifiedImageError):  # its text has the path again, or an object's address
        return f"it is not an image ({', '.join(formats)})"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = "".join(letter if letter.isprintable() else " " for letter in text)  # some hold bytes of the file
    return " ".join(text.split()).rstrip(".")
