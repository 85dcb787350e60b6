"""What a file is that isn't the one that was asked for: a web page, a pointer of Git LFS, an archive, a text, ...

Every reader of files from elsewhere asks here first, so that a download that went wrong gets a sentence of its own.
"""

import codecs
import os
import stat
import zipfile
from collections.abc import Collection
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["ZIP archive", "text", "picture"]

NUM_FIRST_BYTES = 512
NUM_CHARACTERS_SHOWN = 60  # of a text
ARCHIVES = MappingProxyType(  # by their first bytes; ZIP is apart, for weights and embeddings are ZIP archives too
    {
        b"\x1f\x8b\x08": "gzip",
        b"BZh": "bzip2",
        b"\xfd7zXZ\0": "xz",
        b"7z\xbc\xaf\x27\x1c": "7z",
        b"Rar!\x1a\x07": "RAR",
    }
)
PICTURES = MappingProxyType(
    {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
)
ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")  # with content, and empty
NO_TEXT = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b")  # bytes that stand in no text


def wrong_file(path: str | Path, wanted: str, may_be: Collection[Kind] = ()) -> tuple[str, str] | None:
    """What shows that a file isn't the `wanted` one ("weight file"), and what to do; None where nothing shows it.

    Both are words for a message: f"{path} {what}: {advice}". `may_be`: kinds of files that the wanted one is itself.
    None too for a file that is missing or can't be read: opening it has the words.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return "is a folder", f"give the {wanted} itself"
        if not stat.S_ISREG(status.st_mode):  # a device may have no end
            return None
        with open(path, "rb") as file:
            start = file.read(NUM_FIRST_BYTES)
    except (OSError, ValueError):  # ValueError: a NUL byte in the path
        return None
    if not start:
        return "is empty", "get it again"
    return _page_or_pointer(start, wanted) or _archive(path, start, wanted, may_be) or _other(start, wanted, may_be)


def _page_or_pointer(start: bytes, wanted: str) -> tuple[str, str] | None:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return f"is a web page, no {wanted}", "open its address in a browser and save the file that the page offers"
    if text.startswith(b"version https://git-lfs.github.com/spec/"):
        return f"is a pointer of Git LFS, no {wanted}", "run `git lfs pull` where it was cloned, or download the file"
    return None


def _archive(path: str | Path, start: bytes, wanted: str, may_be: Collection[Kind]) -> tuple[str, str] | None:
    archive = next((name for first, name in ARCHIVES.items() if start.startswith(first)), None)
    if start.startswith(ZIP_STARTS):
        try:
            if not zipfile.is_zipfile(path):  # its table of contents stands at the end
                return "has no end, the download stopped early", "get it again"
        except zipfile.BadZipFile:  # damaged in another way, as opening it will say
            pass
        archive = None if "ZIP archive" in may_be else "ZIP"
    elif start[257:262] == b"ustar":
        archive = "tar"
    return archive and (f"is a {archive} archive, no {wanted}", f"unpack it and give the {wanted} that is in it")


def _other(start: bytes, wanted: str, may_be: Collection[Kind]) -> tuple[str, str] | None:
    """A picture, or a text."""
    picture = next((name for first, name in PICTURES.items() if start.startswith(first)), None)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        picture = "WebP"
    if picture and "picture" not in may_be:
        return f"is a {picture} picture, no {wanted}", f"give the {wanted} itself"
    if "text" in may_be:
        return _text_in_utf16(start)
    text = None if NO_TEXT.intersection(start) else _as_text(start)
    if text is None:
        return None
    first = text.strip().split("\n")[0][:NUM_CHARACTERS_SHOWN]
    return f"is a text that begins {first!r}, no {wanted}", f"give the {wanted} itself, or get it again"


def _text_in_utf16(start: bytes) -> tuple[str, str] | None:
    """Of a kind of text that is read as UTF-8."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "is in UTF-16", "save it as UTF-8"
    return None


def _as_text(start: bytes) -> str | None:
    """None where the bytes are no UTF-8."""
    for cut in range(4):  # the last letter may be cut in two
        try:
            return start[: len(start) - cut].decode("utf-8-sig")
        except UnicodeDecodeError:
            if len(start) < NUM_FIRST_BYTES:
                return None
    return None
