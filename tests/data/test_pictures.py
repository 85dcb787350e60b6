"""Pictures as they come: each kind is decoded right, or refused in one sentence that names the file."""

import io
import os
import struct
import sys
import types
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, features
from refusals import refused

from data.faces import index_identity_folders
from data.transforms import MAX_PIXELS, MAX_SIDE, Photograph, decode_face, decode_photograph, heif_is_read
from meta import UserError

SIZE = (112, 112)


def noise(mode="RGB", seed=0, size=SIZE):
    """Noise in every channel of the mode, its transparency too."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode="L" if mode == "P" else mode)


def saved(image, kind, **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def write(folder, content, name="face.jpg"):
    path = folder / name
    path.write_bytes(content)
    return path


def pixels_of(face):
    return face.permute(1, 2, 0).numpy()


def assert_refused(path, reason):
    with pytest.raises(UserError, match=reason) as caught:
        decode_face(path)
    message = str(caught.value)
    assert repr(str(path)) in message
    assert message.isprintable() and len(message) < 500
    assert message.endswith("replace it or leave it out.")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_is_laid_on_black(tmp_path, kind):
    picture = noise("RGBA")
    how = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    face = pixels_of(decode_face(write(tmp_path, saved(picture, kind, **how))))
    channels = np.array(picture).astype(float)
    expected = channels[..., :3] * channels[..., 3:] / 255
    assert np.abs(face - expected).max() <= 1
    assert not face[channels[..., 3] == 0].any()


def test_one_transparent_colour_of_a_palette_or_of_rgb_is_black(tmp_path):
    colour = Image.new("RGB", SIZE, (200, 100, 50))
    assert not decode_face(write(tmp_path, saved(colour, "PNG", transparency=(200, 100, 50)))).any()
    assert not decode_face(write(tmp_path, saved(colour.quantize(4), "PNG", transparency=0))).any()
    grey = Image.new("L", SIZE, 200)
    assert not decode_face(write(tmp_path, saved(grey, "PNG", transparency=200))).any()


def test_grey_with_16_bits_is_refused_and_colours_with_16_bits_keep_their_upper_8(tmp_path):
    grey = Image.fromarray(np.full(SIZE, 40000, dtype=np.uint16))
    assert_refused(write(tmp_path, saved(grey, "PNG")), "not 8 bits a channel")
    assert (decode_face(png_of_16_bits(0xC8FF)) == 0xC8).all()


def png_of_16_bits(value):
    """RGB, 16 bits a channel, every one of them `value`; PIL can read these but not write them."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = b"\0" + struct.pack(">H", value) * 3 * SIZE[0]
    header = struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * SIZE[1])) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_orientation_in_exif_does_not_turn_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees; the published loader does not
    ways = ({}, {"exif": exif}, {"progressive": True})  # and a progressive one is the same picture
    plain, turned, progressive = (decode_face(saved(noise(), "JPEG", **how)) for how in ways)
    assert torch.equal(plain, turned) and torch.equal(plain, progressive)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_a_truncated_file_is_refused(tmp_path, kind):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    whole = saved(noise(), kind)
    for share in (0.02, 0.5, 0.95):
        assert_refused(write(tmp_path, whole[: int(share * len(whole))]), "cannot be decoded")


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"<html>404 Not Found</html>", b"\xff\xd8\xff"])
def test_a_file_that_is_no_picture_is_refused(tmp_path, content):
    assert_refused(write(tmp_path, content), "cannot be decoded")


def test_an_animated_gif_is_never_taken_for_a_face(tmp_path):
    gif = saved(noise("P", 1), "GIF", save_all=True, append_images=[noise("P", 2)])
    (tmp_path / "person").mkdir()
    write(tmp_path / "person", gif, "0.gif")
    disguised = write(tmp_path / "person", gif, "1.jpg")
    index = index_identity_folders(tmp_path, None)
    assert [index.name(i) for i in range(len(index))] == ["person/1.jpg"]
    assert_refused(disguised, "not an image .JPEG, PNG, BMP, WEBP")


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA", "PDF"])
def test_formats_that_nobody_asked_for_are_refused_whatever_their_name(tmp_path, kind):
    assert_refused(write(tmp_path, saved(noise(size=(32, 32)), kind)), "cannot be decoded")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_of_several_pictures_counts(tmp_path, kind):
    lossless = {"lossless": True} if kind == "WEBP" else {}
    moving = saved(noise(seed=1), kind, save_all=True, append_images=[noise(seed=2)], **lossless)
    assert np.array_equal(pixels_of(decode_face(write(tmp_path, moving))), np.array(noise(seed=1)))


def claiming(kind, width, height):
    """A small file whose header claims this size."""
    content = bytearray(saved(noise(size=(16, 16)), kind))
    if kind == "PNG":
        struct.pack_into(">II", content, 16, width, height)
        struct.pack_into(">I", content, 29, zlib.crc32(content[12:29]))
    elif kind == "BMP":
        struct.pack_into("<ii", content, 18, width, height)
    elif kind == "JPEG":
        start = content.index(b"\xff\xc0")  # baseline frame: length, bits, height, width
        struct.pack_into(">HH", content, start + 5, height, width)
    else:
        struct.pack_into("<HH", content, content.index(b"\x9d\x01\x2a") + 3, width, height)
    return bytes(content)


@pytest.mark.parametrize("pils_limit", ["PIL's limit", "none"])
@pytest.mark.parametrize(("kind", "width", "height"), [
    ("PNG", 20_000, 20_000), ("BMP", 20_000, 20_000), ("JPEG", 20_000, 20_000), ("WEBP", 16_383, 16_383),
    ("JPEG", 8_001, 8_000),  # the first beyond MAX_PIXELS
    ("PNG", 10_000, 10_000),  # where PIL only warns
    ("PNG", 2**31 - 1, 2**31 - 1),
])  # fmt: skip
def test_a_picture_that_claims_too_many_pixels_is_refused_by_its_header(
    tmp_path, monkeypatch, kind, width, height, pils_limit
):
    if pils_limit == "none":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.exit("pixels were asked for"))
    assert_refused(write(tmp_path, claiming(kind, width, height)), f"claims {width} x {height} pixels|exceeds limit")


def test_a_line_of_pixels_is_refused_and_the_largest_picture_is_not(tmp_path):
    line = claiming("PNG", MAX_SIDE + 1, 1)
    assert_refused(write(tmp_path, line), f"claims {MAX_SIDE + 1} x 1 pixels")
    assert MAX_PIXELS == 8_000 * 8_000
    assert_refused(write(tmp_path, claiming("PNG", 8_000, 8_000)), "truncated")  # not for its size


@pytest.mark.parametrize("name", ["my face.jpg", "\u00fc \u5f20\U0001f600.PNG", "-x.JPEG", "a'b\"c.WebP", "x.y.BmP"])
def test_odd_names_and_upper_case_suffixes_are_read(tmp_path, name):
    (tmp_path / "Zo\u00eb X").mkdir()
    kind = {"jpg": "JPEG", "jpeg": "JPEG"}.get(name.rsplit(".")[-1].lower(), name.rsplit(".")[-1].upper())
    write(tmp_path / "Zo\u00eb X", saved(noise(), kind), name)
    index = index_identity_folders(tmp_path, None)
    assert index.name(0) == f"Zo\u00eb X/{name}"
    assert decode_face(index.path(0)).shape == (3, 112, 112)


def test_folder_loops_end_and_a_looping_identity_is_named(tmp_path):
    person = tmp_path / "person"
    person.mkdir()
    write(person, saved(noise(), "PNG"), "0.png")
    (person / "back").symlink_to(tmp_path)  # folders in a person's folder are not looked at
    (tmp_path / "again").symlink_to(tmp_path)
    index = index_identity_folders(tmp_path, None)
    assert [index.name(i) for i in range(len(index))] == ["person/0.png"]

    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    refused(index_identity_folders, tmp_path, None, match=r"ring' cannot be read, Too many levels of symbolic links")
    (tmp_path / "ring").unlink()
    (tmp_path / "ring").symlink_to(tmp_path / "unmounted")
    refused(index_identity_folders, tmp_path, None, match=r"ring' cannot be read, No such file.*where its link leads")


def test_a_picture_whose_link_is_a_loop_or_leads_nowhere_is_refused_when_it_is_read(tmp_path):
    (tmp_path / "person").mkdir()
    (tmp_path / "person" / "loop.jpg").symlink_to(tmp_path / "person" / "loop.jpg")
    (tmp_path / "person" / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    index = index_identity_folders(tmp_path, None)
    assert len(index) == 2
    assert_refused(index.path(0), "Too many levels of symbolic links")
    assert_refused(index.path(1), "No such file")


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, saved(noise(), "PNG"))
    plain_open = open

    def forbidden(file, *arguments, **options):  # root may read everything, so permissions would show nothing
        if os.fspath(file) == os.fspath(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return plain_open(file, *arguments, **options)

    monkeypatch.setattr("builtins.open", forbidden)
    assert_refused(path, "Permission denied")


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zeros.jpg").symlink_to("/dev/zero")
    for name in ("folder.jpg", "pipe.jpg", "zeros.jpg"):
        assert_refused(tmp_path / name, "a folder or a device, not a file")
    assert_refused(tmp_path / "gone.jpg", "No such file")
    assert_refused("nul\0byte.jpg", "null byte")


def test_no_memory_is_no_fault_of_the_picture(monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(MemoryError):
        decode_face(saved(noise(), "PNG"))


def test_scaled_decoding_gives_nearly_the_same_picture_and_leaves_small_ones_and_other_formats_alone(tmp_path):
    pixels = np.asarray(Image.effect_mandelbrot((256, 256), (-2, -1.5, 1, 1.5), 60).convert("RGB"))
    for name in ("large.jpg", "large.png"):
        Image.fromarray(pixels).save(tmp_path / name, quality=95)
    Image.fromarray(pixels).resize((200, 200)).save(tmp_path / "small.jpg", quality=95)
    for name in ("large.jpg", "large.png", "small.jpg"):
        whole, scaled = (decode_face(tmp_path / name, scaled=scaled).float() for scaled in (False, True))
        difference = (whole - scaled).abs().mean().item()
        assert (0 < difference < 4) if name == "large.jpg" else difference == 0, (name, difference)


# -------------------------------------------------------------------------------------------------------- photographs


def coloured() -> Image.Image:
    """32 x 16: red at the left, blue at the right."""
    picture = Image.new("RGB", (32, 16), (250, 0, 0))
    picture.paste((0, 0, 250), (16, 0, 32, 16))
    return picture


def is_coloured(picture: Image.Image) -> bool:
    left, right = (np.asarray(picture)[4:12, columns].mean((0, 1)) for columns in (slice(4, 12), slice(20, 28)))
    return picture.size == (32, 16) and picture.mode == "RGB" and np.abs(left - (250, 0, 0)).max() < 40 > np.abs(
        right - (0, 0, 250)).max()  # fmt: skip


@pytest.mark.parametrize("name", ["a.tif", "a.gif", "a.avif", "a.jpg", "a.png", "a.webp", "a.bmp"])
def test_photographs_are_read_in_what_cameras_write_of_several_pictures_the_first(tmp_path, name):
    if name == "a.avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    more = {"save_all": True, "append_images": [Image.new("RGB", (32, 16))]} if name in ("a.tif", "a.gif") else {}
    coloured().save(tmp_path / name, **more)
    photo = decode_photograph(tmp_path / name)
    assert is_coloured(photo.picture) and photo.orientation == 1 and is_coloured(photo.upright())


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "transparent.png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_exif_is_undone(tmp_path, name, orientation):
    turned_back = {value: key for key, value in ((6, 8), (8, 6))} | {key: key for key in (1, 2, 3, 4, 5, 7)}
    stored = Photograph(coloured(), turned_back[orientation]).upright()  # what a camera held this way writes
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.convert("RGBA" if name == "transparent.png" else "RGB").save(tmp_path / name, exif=exif)
    assert is_coloured(decode_photograph(tmp_path / name).upright())


def test_broken_exif_turns_nothing(tmp_path):
    coloured().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    assert is_coloured(decode_photograph(tmp_path / "a.jpg").upright())


def test_heic_names_the_package_that_reads_it(tmp_path, monkeypatch):
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x20ftypheic" + bytes(40))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heif_is_read.cache_clear()
    refused(decode_photograph, path, match="it is HEIC, which only the package pillow-heif reads: pip install")
    opened = []
    package = types.ModuleType("pillow_heif")
    package.register_heif_opener = lambda: opened.append(True)
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    heif_is_read.cache_clear()
    refused(decode_photograph, path, match="it is not an image")  # the package was asked
    heif_is_read.cache_clear()
    assert opened == [True]
    path.write_bytes(b"hello")
    refused(decode_photograph, path, match=r"it is not an image \(JPEG, PNG, BMP, WEBP, TIFF, GIF, AVIF, HEIF\)")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(decode_photograph, path, match=r"it is a pointer of Git LFS, no picture \(run `git lfs pull` ")
