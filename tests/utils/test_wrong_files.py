"""What a file is that isn't the one that was asked for, by its first bytes and its end."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from data.records import index_record_file
from meta import UserError
from utils.wrong_files import wrong_file

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:8f2383e4\nsize 232589\n"
KINDS = {
    b"": "is empty",
    b"\n<!DOCTYPE html>\n<html></html>\n": "is a web page",
    b"\xef\xbb\xbf<HTML>": "is a web page",
    LFS_POINTER: "is a pointer of Git LFS",
    b"\x1f\x8b\x08\0": "is a gzip archive",
    b"Rar!\x1a\x07\0": "is a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive",
    bytes(257) + b"ustar\0" + bytes(300): "is a tar archive",
    b"PK\x03\x04 and no end": "the download stopped early",
    b'{"error": "access denied"}\n': 'is a text that begins \'{"error": "access denied"}\'',
    "Überschreitung".encode() * 100: "is a text that begins 'Überschreitung",
    b"\xff\xd8\xff\xe0\0\x10JFIF": "is a JPEG picture",
    b"RIFF\0\0\0\0WEBPVP8 ": "is a WebP picture",
}


@pytest.mark.parametrize("content", KINDS)
def test_what_a_file_is_is_seen_by_its_first_bytes(tmp_path, content):
    path = tmp_path / "some.bin"
    path.write_bytes(content)
    what, advice = wrong_file(path, "weight file")
    assert KINDS[content] in what and advice
    assert what in ("is empty", "has no end, the download stopped early") or what.endswith(", no weight file")


def test_a_zip_archive_is_wrong_where_no_archive_is_wanted(tmp_path):
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("yunet.onnx", b"a model")
    assert wrong_file(path, "file") == ("is a ZIP archive, no file", "unpack it and give the file that is in it")
    assert wrong_file(path, "weight file", ("ZIP archive",)) is None
    # Of several disks, by a table of contents that no program wrote: Python's is_zipfile raises for it.
    path.write_bytes(path.read_bytes()[:-22] + b"PK\x06\x07" + b"\x01" + bytes(15) + path.read_bytes()[-22:])
    assert wrong_file(path, "weight file", ("ZIP archive",)) is None


def test_sound_files_are_left_alone(tmp_path):
    path = tmp_path / "some.bin"
    for content in (b"\x08\x07pytorch", bytes(100), b"\x80\x02}q\0.", b"caf\xe9 in another encoding"):
        path.write_bytes(content)
        assert wrong_file(path, "file") is None
    path.write_bytes(b"path,x1,y1\n")
    assert wrong_file(path, "file", ("text",)) is None
    path.write_text("path,x1,y1\n", encoding="utf-16")
    assert wrong_file(path, "file", ("text",)) == ("is in UTF-16", "save it as UTF-8")
    np.save(tmp_path / "a.npy", np.zeros(3))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert wrong_file(tmp_path / "a.npy", "file") is None
    assert wrong_file(tmp_path / "a.png", "picture", ("picture",)) is None
    assert wrong_file(tmp_path / "nowhere", "file") is None and wrong_file("a\0b", "file") is None


@pytest.mark.parametrize("name", ["train.rec", "train.idx"])
def test_a_pointer_of_git_lfs_among_record_files_is_named(tmp_path, name):
    (tmp_path / "train.rec").write_bytes(b"\x0a\x23\xd7\xce" + bytes(60))
    (tmp_path / name).write_bytes(LFS_POINTER)
    with pytest.raises(UserError, match=rf"{name}' .*is a pointer of Git LFS, no .*: run `git lfs pull`"):
        index_record_file(tmp_path / "train.rec")
