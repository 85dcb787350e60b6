"""Faces side by side in one PNG, with captions: what a network is given, for looking at."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from meta import IMAGE_SIZE, PIXEL_MEAN, PIXEL_SCALE
from utils.files import written_beside

COLUMNS = 8
MARGIN, CAPTION_HEIGHT, TITLE_HEIGHT = 6, 30, 26  # pixels
CAPTION_SIZE, TITLE_SIZE = 11, 14
MAX_LETTERS = 18  # of a line below a picture
PAPER, INK, FAINT = "white", "#222222", "#666666"


def draw_grid(path: str | Path, title: str, images: Tensor, captions: Sequence[tuple[str, str]]) -> None:
    """A PNG of `images` (N, 3, 112, 112) in [-1, 1], as the network takes them, with two lines below each."""
    pixels = (images.float().cpu() * PIXEL_SCALE + PIXEL_MEAN).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    columns, cell = min(COLUMNS, len(pixels)), (IMAGE_SIZE + MARGIN, IMAGE_SIZE + CAPTION_HEIGHT + MARGIN)
    title_font, font = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(CAPTION_SIZE)
    width = max(MARGIN + columns * cell[0], round(title_font.getlength(title)) + 2 * MARGIN)
    sheet = Image.new("RGB", (width, MARGIN + TITLE_HEIGHT + -(-len(pixels) // columns) * cell[1]), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=title_font)
    for number, (face, lines) in enumerate(zip(pixels, captions, strict=True)):
        left, top = MARGIN + number % columns * cell[0], MARGIN + TITLE_HEIGHT + number // columns * cell[1]
        sheet.paste(Image.fromarray(face.numpy()), (left, top))
        for line, (text, colour) in enumerate(zip(lines, (INK, FAINT), strict=True)):
            place = (left + 1, top + IMAGE_SIZE + 1 + line * (CAPTION_SIZE + 2))
            draw.text(place, _shortened(text), fill=colour, font=font)
    with written_beside(path) as file:
        sheet.save(file, "PNG")


def _shortened(text: str) -> str:
    """The end, where names of one data set differ; what no font can draw is escaped."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return shown if len(shown) <= MAX_LETTERS else "..." + shown[3 - MAX_LETTERS :]
