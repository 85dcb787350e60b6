"""Draws one made-up face: a person at an age in a shot -> pixels. Units and axes: data/synthetic/people.py."""

import functools
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data.synthetic.people import (
    OLDEST,
    Person,
    Proportions,
    Shot,
    Years,
    at_growth,
    linear_rgb,
    proportions_of,
    ramp,
    random_stream,
    years_of,
)
from meta import IMAGE_SIZE, UserError

# Where aligned faces have their eyes, nose tip and mouth corners, in pixels of a 112x112 picture (ArcFace's template).
TEMPLATE = np.array([[38.3, 51.7], [73.5, 51.5], [56.0, 71.7], [41.5, 92.4], [70.7, 92.2]])

# ------------------------------------------------------------------------------------------ drawing: the ground

TILE = 256  # pixels; noise tiles repeat, so any place in them will do
ANGLES = 1024  # steps of a closed outline
EVERYWHERE = (slice(None), slice(None))
POLE_Y = 6.0  # face units below the eyes: the pole of all outlines


@functools.lru_cache(maxsize=8)
def noise_tile(name: str) -> np.ndarray:
    """Flat (TILE * TILE,) float32 noise of mean 0 and deviation 1: "fine", "soft", "spot", "cloud" or "strand"."""
    sigma_y, sigma_x = {
        "fine": (0.0, 0.0),
        "soft": (1.2, 1.2),
        "spot": (3.5, 3.5),
        "cloud": (9.0, 9.0),
        "strand": (7.0, 0.9),
    }[name]
    white = random_stream(*name.encode()).standard_normal((TILE, TILE))
    frequency = np.fft.fftfreq(TILE) * 2 * math.pi
    falloff = np.exp(-0.5 * ((frequency[:, None] * sigma_y) ** 2 + (frequency[None, :] * sigma_x) ** 2))
    smooth = np.fft.ifft2(np.fft.fft2(white) * falloff).real
    return ((smooth - smooth.mean()) / smooth.std()).astype(np.float32).ravel()


def noise_at(name: str, x: np.ndarray, y: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    """Noise at coordinates in tile pixels, nearest sample."""
    column = (x + (place[0] + 4 * TILE)).astype(np.int32) & (TILE - 1)
    row = (y + (place[1] + 4 * TILE)).astype(np.int32) & (TILE - 1)
    return noise_tile(name).take(row * TILE + column)


def step(distance: np.ndarray, softness: float) -> np.ndarray:
    """Soft mask of a signed distance: 0 outside, 1 inside, `softness` face units from one to the other."""
    mask = distance * (1.0 / softness)
    mask += 0.5
    np.maximum(mask, 0.0, out=mask)
    return np.minimum(mask, 1.0, out=mask)


def bell(x: np.ndarray, width: float) -> np.ndarray:
    """Bell curve of height 1."""
    scaled = x * (1.0 / width)
    return np.exp(-scaled * scaled)


@dataclass
class Canvas:
    """One picture in the making. H = W = size."""

    person: Person
    years: Years
    shot: Shot
    at: Proportions
    scale: float  # pixels of this picture to one of the template
    placing: tuple[float, float, float, float]  # similarity from turned face plane to template: a, b, shift x, shift y
    x: np.ndarray  # (H,W) face coordinates of every pixel
    y: np.ndarray
    angle: np.ndarray  # (H,W) int32 the same about the outlines' pole: index into outline tables
    radius: np.ndarray  # (H,W)
    height: np.ndarray  # (H,W) towards the camera before turning
    colour: np.ndarray  # (3,H,W) linear reflectance
    cover: np.ndarray  # (H,W) 1 where the person hides the background

    def window(self, x: float, y: float, reach_x: float, reach_y: float) -> tuple[slice, slice]:
        """Rows and columns that surely hold the face rectangle (x +- reach_x, y +- reach_y)."""
        a, b, shift_x, shift_y = self.placing
        size, zoom = len(self.x), math.hypot(a, b) * self.scale  # pixels a face unit
        # Where the point would be on a flat face; then walk there by what the grid says of the place reached
        centre_x, centre_y = (a * x - b * y + shift_x) * self.scale, (b * x + a * y + shift_y) * self.scale
        for _ in range(3):
            row, column = min(max(int(centre_y), 0), size - 1), min(max(int(centre_x), 0), size - 1)
            centre_x = column + 0.5 + (x - self.x.item(row, column)) * zoom
            centre_y = row + 0.5 + (y - self.y.item(row, column)) * zoom
        half_x = (reach_x * 1.12 + abs(b) * reach_y + 1.0) * zoom
        half_y = (reach_y * 1.12 + abs(b) * reach_x + 1.0) * zoom
        rows = slice(max(0, int(centre_y - half_y)), min(size, max(0, int(centre_y + half_y) + 2)))
        columns = slice(max(0, int(centre_x - half_x)), min(size, max(0, int(centre_x + half_x) + 2)))
        return rows, columns

    def paint(self, mask: np.ndarray, colour: np.ndarray, where: tuple[slice, slice] = EVERYWHERE) -> None:
        """Lay a colour, (3,) or (3,h,w), over the picture as far as `mask` (h,w) says."""
        target = self.colour[(slice(None), *where)]
        if colour.ndim == 1:
            colour = colour[:, None, None]
        target += mask * (colour - target)

    def tint(
        self, mask: np.ndarray, factor: tuple[float, float, float], where: tuple[slice, slice] = EVERYWHERE
    ) -> None:
        """Multiply the picture by `factor` as far as `mask` says."""
        target = self.colour[(slice(None), *where)]
        target *= 1.0 + mask * (np.float32(factor) - 1.0)[:, None, None]

    def raise_bump(self, x: float, y: float, width_x: float, width_y: float, height: float) -> None:
        """Add a bell-shaped bump to the relief."""
        where = self.window(x, y, 2.5 * width_x, 2.5 * width_y)
        dx, dy = (self.x[where] - x) * (1 / width_x), (self.y[where] - y) * (1 / width_y)
        self.height[where] += height * np.exp(-(dx * dx + dy * dy))


def head_height(x: np.ndarray, y: np.ndarray, at: Proportions) -> np.ndarray:
    """Relief of head and nose without detail: what turns with the head."""
    dome_x, dome_y = x * (1.0 / (1.24 * at.skull_half)), (y - 2.0) * (1.0 / 78.0)
    dome = np.sqrt(np.maximum(1.0 - dome_x * dome_x - dome_y * dome_y, 0.03))
    along = np.clip((y + 5.0) * (1.0 / (at.nose_y + 5.0)), 0.0, 1.0)
    below = np.clip((at.nose_y + 7.5 - y) * (1.0 / 6.0), 0.0, 1.0)
    across = x * (1.0 / (3.4 + 0.35 * at.nose_half))
    nose = along * below * below * (3.0 - 2.0 * below) * np.exp(-across * across)
    return 33.0 * dome + at.nose_z * nose


def turn(points: np.ndarray, at: Proportions, shot: Shot) -> np.ndarray:
    """Face points (N,2) seen from the camera after yaw and pitch, (N,2)."""
    x, y = points[:, 0], points[:, 1]
    z = head_height(x, y, at) - 33.0
    return np.stack(
        [
            x * math.cos(shot.yaw) + z * math.sin(shot.yaw),
            y * math.cos(shot.pitch) - z * math.sin(shot.pitch),
        ],
        axis=1,
    )


def align(points: np.ndarray, template: np.ndarray) -> tuple[float, float, float, float]:
    """Least-squares similarity from points to template, both (N,2): (a, b, shift x, shift y)."""
    centre, goal = points.mean(0), template.mean(0)
    p, q = points - centre, template - goal
    size = float((p * p).sum())
    a = float((p * q).sum()) / size
    b = float((p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum()) / size
    return (
        a,
        b,
        float(goal[0] - a * centre[0] + b * centre[1]),
        float(goal[1] - b * centre[0] - a * centre[1]),
    )


@functools.lru_cache(maxsize=4)
def pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Template coordinates of the pixel centres, two (size,size) arrays."""
    along = ((np.arange(size) + 0.5) * (IMAGE_SIZE / size)).astype(np.float32)
    x, y = np.meshgrid(along, along)
    return x, y


def start_canvas(person: Person, years: Years, shot: Shot, size: int) -> Canvas:
    """Align the face by its five points, as real data is, and find the face point behind every pixel."""
    at = proportions_of(person, years, shot)
    points = [
        (-at.eye_x, 0),
        (at.eye_x, 0),
        (0, at.nose_y),
        (-at.mouth_half, at.mouth_y),
        (at.mouth_half, at.mouth_y),
    ]
    a, b, shift_x, shift_y = align(turn(np.array(points), at, shot), TEMPLATE)
    # An aligner is never quite right: a last small turn, zoom and shift about the template's centre.
    zoom = 1.0 + shot.zoom
    cosine, sine = zoom * math.cos(shot.roll), zoom * math.sin(shot.roll)
    a, b = cosine * a - sine * b, sine * a + cosine * b
    centre = TEMPLATE.mean(0)
    from_x, from_y = shift_x - centre[0], shift_y - centre[1]
    shift_x = float(cosine * from_x - sine * from_y + centre[0] + shot.shift_x)
    shift_y = float(sine * from_x + cosine * from_y + centre[1] + shot.shift_y)

    pixel_x, pixel_y = pixel_grid(size)
    norm = 1.0 / (a * a + b * b)
    flat_x = ((pixel_x - shift_x) * a + (pixel_y - shift_y) * b) * norm
    flat_y = ((pixel_y - shift_y) * a - (pixel_x - shift_x) * b) * norm
    # Undo the turn. The relief is needed at the point sought, so repeat: the map contracts below 30 degrees.
    x, y = flat_x, flat_y
    for _ in range(3):
        z = head_height(x, y, at) - 33.0
        x = (flat_x - z * math.sin(shot.yaw)) * (1 / math.cos(shot.yaw))
        y = (flat_y + z * math.sin(shot.pitch)) * (1 / math.cos(shot.pitch))
    return Canvas(
        person=person,
        years=years,
        shot=shot,
        at=at,
        scale=size / IMAGE_SIZE,
        placing=(a, b, shift_x, shift_y),
        x=x,
        y=y,
        angle=(np.arctan2(x, POLE_Y - y) * (ANGLES / (2 * math.pi)) + ANGLES).astype(np.int32) & (ANGLES - 1),
        radius=np.sqrt(np.square(x) + np.square(y - POLE_Y)),
        height=head_height(x, y, at),
        colour=np.empty((3, size, size), np.float32),
        cover=np.zeros((size, size), np.float32),
    )


# ------------------------------------------------------------------------------------- drawing: head, neck, ears


def outline_table(right: list[tuple[float, float]], left: list[tuple[float, float]], smooth: float) -> np.ndarray:
    """(ANGLES,) radius of the closed curve through points (x >= 0, y), from crown to chin, right and left half.

    Angles run clockwise from straight up; `smooth` is the rounding in angle steps of 1/256 turn.
    """
    coarse = 256
    angles, radii = [], []
    for points, side in ((right, 1.0), (left, -1.0)):
        for x, y in points:
            angles.append(math.atan2(side * max(x, 1e-3), -(y - POLE_Y)) % (2 * math.pi))
            radii.append(math.hypot(x, y - POLE_Y))
    order = np.argsort(angles)
    steps = np.arange(coarse) * (2 * math.pi / coarse)
    radius = np.interp(steps, np.array(angles)[order], np.array(radii)[order], period=2 * math.pi)
    reach = int(3 * smooth) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / smooth) ** 2)
    padded = np.concatenate([radius[-reach:], radius, radius[:reach]])
    radius = np.convolve(padded, kernel / kernel.sum(), mode="valid")
    fine = np.interp(np.arange(ANGLES) * (coarse / ANGLES), np.arange(coarse + 1), np.append(radius, radius[0]))
    return fine.astype(np.float32)


def face_outline(canvas: Canvas) -> np.ndarray:
    """Radius table of skull, cheeks, jaw and chin."""
    person, years, at, shot = canvas.person, canvas.years, canvas.at, canvas.shot
    fullness = 0.9 * person.cheek_fullness + 0.7 * shot.weight + 2.4 * years.baby - 1.2 * years.old + 1.0 * shot.smile
    jaw = person.jaw_width * (0.94 + 0.06 * years.growth)
    jowl = 2.6 * years.sag
    chin_half = 12.5 * person.chin_width * (0.85 + 0.15 * years.growth)
    square = person.jaw_square * (0.3 + 0.7 * years.puberty)

    def half(lean: float) -> list[tuple[float, float]]:
        return [
            (0.0, at.crown_y),
            (at.skull_half * 0.5, at.crown_y * 0.96),
            (at.skull_half * 0.84, at.crown_y * 0.75),
            (at.skull_half * 0.99, at.crown_y * 0.40),
            (at.half_width * 0.5 + at.skull_half * 0.5, -3.0),
            (at.half_width + person.cheekbone_out * years.growth * 0.8, 12.0),
            (at.half_width * 0.955 + fullness, at.mouth_y * 0.62),
            (at.half_width * (0.83 + 0.022 * square) * jaw + fullness * 0.8 + jowl, at.mouth_y + 1.5),
            (
                at.half_width * (0.55 + 0.022 * square) * jaw + chin_half * 0.16 + jowl,
                0.42 * at.mouth_y + 0.58 * at.chin_y,
            ),
            (chin_half + lean, at.chin_y - 1.2),
            (0.0, at.chin_y),
        ]

    lean = 0.5 * person.asymmetry[4]
    return outline_table(half(lean), half(-lean), 4.5 - 0.6 * max(-1.5, min(1.5, square)))


def draw_behind(canvas: Canvas) -> None:
    """Background, clothes and neck."""
    shot = canvas.shot
    size = len(canvas.x)
    pixel_x, pixel_y = pixel_grid(size)
    slope = (
        1.0 + shot.background_slope[0] * (pixel_x * (1 / 56) - 1) + shot.background_slope[1] * (pixel_y * (1 / 56) - 1)
    )
    clouds = noise_at("cloud", pixel_x, pixel_y, shot.noise_place)
    slope += (0.10 * min(1.0, abs(shot.background_slope[0]) * 4)) * clouds
    canvas.colour[:] = linear_rgb(*shot.background)[:, None, None] * np.maximum(slope, 0.05)


def draw_body(canvas: Canvas) -> None:
    """Neck and clothes, below and behind the jaw."""
    at, years, person = canvas.at, canvas.years, canvas.person
    neck_half = at.half_width * (0.62 + 0.10 * years.puberty * person.male + 0.02 * person.cheek_fullness)
    neck = step(neck_half + 0.15 * np.maximum(canvas.y - at.chin_y, 0) - np.abs(canvas.x), 2.0) * step(
        canvas.y - 20, 4.0
    )
    canvas.paint(neck, 0.62 * np.float32(person.skin))
    collar = at.chin_y + 9.0 - 0.35 * (np.abs(canvas.x) - neck_half) + 0.012 * np.square(canvas.x)
    cloth = step(canvas.y - collar, 1.5)
    canvas.paint(cloth, linear_rgb(*canvas.shot.clothes))
    np.maximum(canvas.cover, np.maximum(neck, cloth), out=canvas.cover)


def draw_ears(canvas: Canvas) -> None:
    """Both ears; they never stop growing."""
    person, at, years = canvas.person, canvas.at, canvas.years
    ear_half = 10.5 * person.ear_size * (0.9 + 0.1 * years.growth) * (1 + 0.16 * years.old)
    out = max(0.3, person.ear_out + 0.8 * years.baby)
    for side in (-1.0, 1.0):
        centre_x, centre_y = side * (at.half_width + 0.45 * out), 4.0 + 2.0 * years.old
        where = canvas.window(centre_x, centre_y, out + 7.0, ear_half + 3.0)
        x, y = side * (canvas.x[where] - centre_x), canvas.y[where] - centre_y
        # Wider at the top than at the lobe
        reach = (out + 2.6) * (1.0 - 0.22 * y * (1 / ear_half))
        distance = 1.0 - np.sqrt(np.square(x / reach) + np.square(y * (1 / ear_half)))
        mask = step(distance * 5.0, 1.2)
        shell = bell(distance - 0.45, 0.22) * mask
        canvas.paint(mask, 0.86 * np.float32(person.skin) * np.float32([1.03, 0.93, 0.92]), where)
        canvas.tint(0.5 * shell, (0.62, 0.5, 0.46), where)
        canvas.cover[where] = np.maximum(canvas.cover[where], mask)


def skin_colour(canvas: Canvas) -> np.ndarray:
    """(3,H,W) reflectance of the skin: cheeks and nose redder, old skin blotchy."""
    person, years, at = canvas.person, canvas.years, canvas.at
    x, y = canvas.x, canvas.y
    base = np.float32(person.skin) * np.float32(
        [1.0, 1.0 + 0.015 * years.baby, 1.0 + 0.03 * years.baby - 0.03 * years.old]
    )
    flush = (0.10 + 0.05 * person.skin_redness + 0.08 * years.baby) * (1 - 0.6 * person.melanin)
    cheeks = np.exp(-np.square((np.abs(x) - 21) * (1 / 10.0)) - np.square((y - 0.95 * at.nose_y) * (1 / 10.0)))
    nose = np.exp(-np.square(x * (1 / 6.5)) - np.square((y - at.nose_y) * (1 / 6.0)))
    red = flush * (cheeks + (0.8 + 0.5 * years.old) * nose)
    blotch = noise_at("soft", x * 1.6, y * 1.6, canvas.shot.noise_place) * (0.016 + 0.022 * years.old)
    blotch += noise_at("cloud", x * 2, y * 2, canvas.shot.noise_place) * (0.02 + 0.02 * years.old)
    skin = base[:, None, None] * (1.0 + blotch)
    skin[1] *= 1.0 - 1.3 * red
    skin[2] *= 1.0 - 1.5 * red
    return skin


def draw_marks(canvas: Canvas) -> None:
    """Freckles, moles, a scar, and the spots that come with age."""
    person, years = canvas.person, canvas.years
    x, y = canvas.x, canvas.y
    freckles = person.freckles * ramp(years.age, 2, 9) * (1 - 0.4 * years.old)
    if freckles > 0.02:
        pattern = noise_at("spot", x * 5.0, y * 5.0, (person.texture[1], person.texture[0]))
        place = np.exp(-np.square(x * (1 / 34)) - np.square((y - 14) * (1 / 19)))
        canvas.tint(np.clip((pattern - 0.9) * 1.5, 0, 1) * place * min(1.0, 1.6 * freckles), (0.68, 0.56, 0.46))
    if years.spots > 0.01:
        pattern = noise_at("spot", x * 1.8, y * 1.8, (person.texture[1], person.texture[0]))
        place = np.clip((np.abs(x) + np.maximum(-y, 0) * 0.7 - 12) * (1 / 16), 0, 1)
        canvas.tint(np.clip((pattern - 1.5) * 1.3, 0, 1) * place * years.spots, (0.66, 0.58, 0.54))
    for mole_x, mole_y, radius, appears in person.moles:
        shown = ramp(years.age, appears - 1, appears + 5)
        if shown > 0:
            where = canvas.window(mole_x, mole_y, 3.5, 3.5)
            distance = np.sqrt(np.square(canvas.x[where] - mole_x) + np.square(canvas.y[where] - mole_y))
            canvas.tint(0.85 * shown * step(radius - distance, 1.1), (0.3, 0.2, 0.17), where)
    if person.scar and years.age > 7:
        scar_x, scar_y, angle, half = person.scar
        where = canvas.window(scar_x, scar_y, half + 2, half + 2)
        dx, dy = canvas.x[where] - scar_x, canvas.y[where] - scar_y
        along, across = dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
        line = bell(across, 0.8) * step(half - np.abs(along), 2.0) * ramp(years.age, 7, 9)
        pale = np.float32([1.15, 1.02, 1.0]) * np.float32(person.skin) + np.float32(0.05)
        canvas.paint(0.7 * line, pale, where)


# -------------------------------------------------------------------------------------- drawing: relief of a face


def shape_relief(canvas: Canvas) -> None:
    """Sockets, cheeks, wings of the nose, lips and chin as bumps that the light will find."""
    person, years, at, shot = canvas.person, canvas.years, canvas.at, canvas.shot
    growth, baby, old = years.growth, years.baby, years.old
    depth = (1.5 + 0.55 * person.eye_depth) * growth + 0.7 + 1.1 * years.sag
    ridge = (0.9 + 0.3 * person.eye_depth) * (0.3 + 0.7 * years.puberty) * (1.25 if person.male else 0.75)
    for side in (-1.0, 1.0):
        canvas.raise_bump(side * (at.eye_x - 7.5), -3.5, 5.0, 5.5, -depth)
        canvas.raise_bump(side * (at.eye_x + 5.0), -4.5, 6.5, 4.5, -0.6 * depth)
        canvas.raise_bump(side * at.eye_x, 0.0, 7.0, 4.5, 1.5)
        canvas.raise_bump(side * (at.eye_x - 2), at.brow_y + 1.0, 11.0, 3.6, 1.2 * ridge)
        cheek = 1.3 + 0.5 * person.cheek_fullness + 1.6 * baby + 1.6 * max(0.0, shot.smile)
        cheek_y = at.nose_y * 0.92 + 2.5 * years.sag - 1.5 * max(0.0, shot.smile)
        canvas.raise_bump(side * (at.eye_x + 5.0), cheek_y, 9.5, 8.5, cheek)
        hollow = 0.5 * person.cheekbone_out + 1.8 * old - 0.8 * person.cheek_fullness - 1.0 * baby
        canvas.raise_bump(side * (at.half_width * 0.68), at.mouth_y * 0.86, 7.0, 9.0, -max(0.0, 0.8 * hollow))
        wing = 2.6 * person.nose_width * (0.75 + 0.25 * growth)
        canvas.raise_bump(side * at.nose_half * 0.72, at.nose_y + 1.2, 2.9, 3.2, wing)
        canvas.raise_bump(side * 10.0, -22.0, 12.0, 9.0, 0.9 + 0.8 * baby)
    canvas.raise_bump(0.6 * person.asymmetry[3], at.nose_y - 0.3, 3.8 * person.nose_tip, 3.4, 2.0 * person.nose_tip)
    canvas.raise_bump(
        0.0, 0.45 * at.nose_y, 2.6 * person.nose_bridge, 5.0, 1.6 * (person.nose_height - 1.0) * 4 * growth
    )
    canvas.raise_bump(0.0, at.mouth_y + 0.5, at.mouth_half * 1.1, 8.0, 1.8)
    canvas.raise_bump(0.0, at.chin_y - 8.5, 9.0 * person.chin_width, 6.0, 2.2 * (0.6 + 0.4 * growth))
    if person.chin_cleft > 0.1:
        canvas.raise_bump(0.0, at.chin_y - 7.0, 1.5, 4.0, -1.8 * person.chin_cleft * years.growth)


def crease(
    canvas: Canvas, start: tuple[float, float], end: tuple[float, float], bulge: float, depth: float, width: float
) -> None:
    """A fold of the skin from start to end (face points), bent sideways by `bulge`: groove in relief and colour."""
    if depth < 0.02:
        return
    (x0, y0), (x1, y1) = start, end
    length = math.hypot(x1 - x0, y1 - y0)
    ux, uy = (x1 - x0) / length, (y1 - y0) / length
    reach = abs(bulge) + 3 * width
    half_x, half_y = abs(x1 - x0) / 2 + reach, abs(y1 - y0) / 2 + reach
    where = canvas.window((x0 + x1) / 2, (y0 + y1) / 2, half_x, half_y)
    dx, dy = canvas.x[where] - x0, canvas.y[where] - y0
    along = (dx * ux + dy * uy) * (1 / length)
    arch = np.maximum(4.0 * along * (1.0 - along), 0.0)
    across = dy * ux - dx * uy - bulge * arch
    groove = bell(across, width) * np.minimum(1.6 * arch, 1.0)
    canvas.height[where] -= (1.1 * depth * width) * groove
    canvas.tint(min(0.55, 0.34 * depth) * groove, (0.62, 0.5, 0.46), where)


def draw_wrinkles(canvas: Canvas) -> None:
    """Folds of cheek and lids, lines of forehead, brow, eye corners and mouth."""
    person, years, at, shot = canvas.person, canvas.years, canvas.at, canvas.shot
    lines = years.wrinkles * person.wrinkle_depth
    smile = max(0.0, shot.smile)
    for row in range(4):
        y = at.brow_y - 6.5 - 5.2 * row - 1.0 * person.wrinkle_place
        depth = (1.1 * lines - 0.13 * row + 0.5 * max(0.0, shot.brow_raise)) * (0.5 + 0.5 * lines)
        half = at.half_width * (0.60 - 0.05 * row + 0.04 * person.wrinkle_place)
        crease(canvas, (-half, y + 1.0), (half, y + 0.5 * person.asymmetry[1]), -1.5, depth, 1.0)
    for side in (-1.0, 1.0):
        nose_x, fold_x = side * (at.nose_half + 0.5), side * (at.mouth_half + 3.8)
        fold = 0.1 + 1.25 * lines + 0.6 * smile * (0.3 + 0.7 * years.growth) + 0.06 * years.baby
        crease(canvas, (nose_x, at.nose_y - 0.5), (fold_x, at.mouth_y + 1.0 + 2.0 * years.sag), -side * 2.2, fold, 1.35)
        crease(
            canvas,
            (fold_x - side * 2.0, at.mouth_y + 1.0),
            (fold_x, at.chin_y - 5.0),
            -side * 1.0,
            1.5 * lines - 0.25,
            1.2,
        )
        corner = side * (at.eye_x + at.eye_width)
        for ray in (-1, 0, 1):
            depth = (1.15 * lines + 0.35 * smile) * (0.3 + lines)
            crease(
                canvas, (corner + side * 1.5, 1.2 * ray), (corner + side * 8.5, 4.2 * ray + 0.8), 0.5 * ray, depth, 0.8
            )
        bag = 0.10 + 1.25 * years.sag * person.wrinkle_depth
        crease(
            canvas,
            (side * (at.eye_x - 8.0), 3.5),
            (side * (at.eye_x + 7.5), 4.5),
            side * (3.6 + 1.5 * years.sag),
            bag,
            1.3,
        )
        canvas.raise_bump(side * at.eye_x, 5.0, 6.0, 2.4, 1.5 * years.sag)
        crease(
            canvas, (side * 2.6, at.brow_y - 1.5), (side * 2.2, at.brow_y + 6.0), 0.4 * side, 1.1 * lines - 0.15, 0.9
        )
        jowl_x = side * at.half_width * 0.62
        canvas.raise_bump(jowl_x, at.mouth_y + 6.5, 6.0, 5.5, 2.4 * years.sag)
    if lines > 0.35:
        for x in (-7.0, -2.6, 2.4, 6.6):
            top = at.mouth_y - 8.0
            crease(canvas, (x, top), (x * 1.08, at.mouth_y - 2.5), 0.2, 1.1 * (lines - 0.35), 0.7)


# ------------------------------------------------------------------------------- drawing: eyes, brows, nose, mouth


def hair_colour(canvas: Canvas, bonus_grey: float = 0.0) -> tuple[np.ndarray, float]:
    """Hair colour (3,) at this age without grey, and the share of grey hairs."""
    person, years = canvas.person, canvas.years
    colour = np.float32(person.hair)
    fair = linear_rgb(206, 172, 120)
    lightness = max(0.0, min(1.0, person.child_fairness)) * years.baby * (1 - person.melanin) * 0.9
    if float(colour.mean()) < 0.015:  # black hair is black from the start
        lightness *= 0.15
    return colour + np.float32(lightness) * (fair - colour), min(
        1.0, max(0.0, years.grey * 0.96 + bonus_grey * years.grey)
    )


def draw_eye(canvas: Canvas, side: float) -> tuple[float, float]:
    """One eye with lids and lashes; returns where its catchlight belongs (face point)."""
    person, years, at, shot = canvas.person, canvas.years, canvas.at, canvas.shot
    centre_x, centre_y = side * at.eye_x, side * 0.35 * person.asymmetry[0]
    where = canvas.window(centre_x, centre_y, 15.0, 12.0)
    x = side * (canvas.x[where] - centre_x)  # positive outwards
    tilt = person.eye_tilt - 0.05 * years.sag
    y = canvas.y[where] - centre_y + tilt * x
    t = x * (1 / at.eye_width)
    arch = np.maximum(1.0 - t * t, 0.0)
    opening = person.eye_opening * (1 + 0.2 * years.baby) * (1 - 0.26 * years.sag)
    opening *= 1.0 - max(-0.25, shot.squint) - 0.22 * max(0.0, shot.smile) + 0.12 * shot.brow_raise
    opening = min(max(opening, 0.4), 1.26 + 0.14 * years.baby)  # a resting lid covers the iris' top
    upper = -4.3 * opening * arch**0.7 * (1.0 - 0.12 * t) + (1.3 * years.sag) * np.clip(t, 0, 1)
    lower = 2.7 * (0.55 + 0.45 * opening) * arch**0.9 + 0.5 * years.sag
    inside = np.minimum(y - upper, lower - y) - 2.0 * np.clip(np.abs(t) - 0.9, 0, 1)
    softness = 0.9 / canvas.scale + 0.1

    # Ball, iris, pupil; the upper lid throws a shadow on all three
    radius = 3.75 * (1 + 0.18 * years.baby) * (0.9 + 0.1 * person.eye_width)
    gaze_x = side * shot.gaze * 1.6 - side * 9.0 * shot.yaw * 0.3
    distance = np.sqrt(np.square(x - gaze_x) + np.square(y + 0.7))
    ball = linear_rgb(200, 193, 188)[:, None, None] * np.ones_like(x)
    ball[1:] *= 1.0 - 0.10 * np.clip(np.abs(t) - 0.3, 0, 1) - 0.05 * years.old
    iris_light = 0.62 + 0.5 * np.clip((y + 0.7) * (1 / radius), -0.5, 1) - 0.5 * np.clip(distance - 0.72 * radius, 0, 1)
    iris = np.float32(person.iris)[:, None, None] * iris_light
    iris_mask = step(radius - distance, softness)
    ball += iris_mask * (iris - ball)
    ball *= 1.0 - 0.94 * step(0.38 * radius - distance, softness)
    ball *= 0.42 + 0.58 * np.clip((y - upper) * (1 / 3.0), 0, 1)
    lid_shadow = bell(y - upper + 1.6, 3.0) * np.exp(-np.square(t * 0.85))
    canvas.tint((0.20 + 0.08 * person.eye_depth * years.growth) * lid_shadow, (0.5, 0.4, 0.38), where)
    canvas.paint(step(inside, softness), ball, where)

    # Lash lines and the fold of the lid, which sinks with age
    span = step(1.08 - np.abs(t), 0.25)
    lashes = (0.75 if person.male else 0.95) * (0.7 + 0.3 * years.growth)
    dark = linear_rgb(34, 24, 22)
    canvas.paint(lashes * bell(y - upper + 0.2, 0.85) * span, dark, where)
    canvas.paint(0.32 * bell(y - lower - 0.2, 0.7) * span, 0.4 * np.float32(person.skin), where)
    fold = max(0.0, min(1.2, person.eyelid_fold))
    gap = 2.3 * fold + 0.4 - 0.9 * years.sag
    line = bell(y - upper + max(0.6, gap), 0.75) * step(1.05 - np.abs(t - 0.05), 0.5)
    canvas.tint(0.55 * min(1.0, fold * 1.6) * line, (0.45, 0.34, 0.3), where)
    return centre_x + side * gaze_x - 1.2, centre_y - 2.2


def draw_brow(canvas: Canvas, side: float) -> None:
    """One eyebrow: a tapering arch of short hairs."""
    person, years, at = canvas.person, canvas.years, canvas.at
    centre_x = side * (at.eye_x + 0.5)
    centre_y = at.brow_y + side * 0.45 * person.asymmetry[1]
    where = canvas.window(centre_x, centre_y, 16.0, 9.0)
    x, y = side * (canvas.x[where] - centre_x), canvas.y[where] - centre_y
    t = x * (1 / (11.0 * person.brow_length))
    arch = person.brow_arch * (0.4 + 0.6 * years.growth)
    line = (
        -arch * (1.0 - np.square(t - 0.25))
        + person.brow_slope * x
        + (0.2 + 1.0 * years.sag) * np.maximum(t, 0) ** 2 * 2
    )
    growth = 0.55 + 0.25 * years.growth + 0.2 * years.puberty
    bushy = 1.0 + (0.25 if person.male else -0.15) * years.old
    thickness = 2.15 * max(0.35, person.brow_thickness) * growth * bushy * (1.0 - 0.6 * np.clip(t, 0, 1) ** 2)
    hairs = noise_at("soft", x * 2.6 + y * 1.6, y * 1.6, canvas.shot.noise_place)
    mask = step(thickness - np.abs(y - line) + 0.15 * hairs, 1.9) * step(1.0 - np.abs(t), 0.45)
    density = min(1.0, max(0.3, person.brow_density)) * (0.35 + 0.65 * min(1.0, years.growth * 1.3))
    colour, grey = hair_colour(canvas, -0.45)
    colour = 0.62 * colour + 0.08 * np.float32(person.skin)
    colour = colour + np.float32(grey * 0.8) * (linear_rgb(165, 160, 155) - colour)
    canvas.paint(density * mask * np.clip(0.92 + 0.09 * hairs, 0, 1), colour, where)
    canvas.height[where] += 0.5 * mask


def draw_nose(canvas: Canvas) -> None:
    """Nostrils, creases of the wings, shadow below; the ridge itself is relief."""
    at = canvas.at
    for side in (-1.0, 1.0):
        x = side * at.nose_half * 0.5
        where = canvas.window(x, at.nose_y + 4.2, 6.0, 4.0)
        dx, dy = canvas.x[where] - x, canvas.y[where] - at.nose_y - 4.0 + 0.18 * side * (canvas.x[where] - x)
        hole = np.exp(-np.square(dx * (1 / (0.30 * at.nose_half))) - np.square(dy * (1 / 1.25)))
        canvas.tint(0.85 * hole, (0.2, 0.12, 0.1), where)
        wing_x = side * at.nose_half
        crease(canvas, (wing_x, at.nose_y - 3.0), (wing_x - side * 0.8, at.nose_y + 4.6), -side * 1.6, 0.75, 0.95)
        crease(canvas, (side * 0.8, at.nose_y + 4.6), (wing_x - side, at.nose_y + 4.9), side * 0.8, 0.5, 1.1)
    where = canvas.window(0.0, at.nose_y + 7.0, 10.0, 5.0)
    below = np.exp(-np.square(canvas.x[where] * (1 / 7.0)) - np.square((canvas.y[where] - at.nose_y - 6.5) * (1 / 2.8)))
    canvas.tint(0.32 * below, (0.55, 0.45, 0.42), where)
    canvas.raise_bump(0.0, (at.nose_y + at.mouth_y) / 2 + 1.0, 1.6, 4.0, -0.9)


def draw_mouth(canvas: Canvas) -> None:
    """Lips that thin with age, teeth when the mouth is open."""
    person, years, at, shot = canvas.person, canvas.years, canvas.at, canvas.shot
    half = at.mouth_half
    where = canvas.window(0.0, at.mouth_y, half + 6.0, 13.0)
    x, y = canvas.x[where] - 0.4 * person.asymmetry[5], canvas.y[where] - at.mouth_y
    t = x * (1 / half)
    arch = np.maximum(1.0 - t * t, 0.0)
    thin = (1.0 - 0.42 * years.old) * (0.86 + 0.14 * years.growth)
    spread = 1.0 - 0.14 * max(0.0, shot.smile)
    upper_size = 3.7 * max(0.3, person.upper_lip) * thin * spread
    lower_size = 4.9 * max(0.35, person.lower_lip) * thin * spread
    corner = person.corner_up + 2.6 * shot.smile - 0.8 * years.sag + 0.3 * person.asymmetry[2] * np.sign(x)
    line = -corner * t * t + 0.8 * arch + 0.5 * person.lip_bow * bell(x, 3.0)
    gap = (3.6 * shot.mouth_open + 1.6 * max(0.0, shot.smile - 0.35)) * arch
    bow = max(0.0, person.lip_bow)
    top = line - upper_size * arch**0.65 * (1.0 - 0.28 * bow * bell(x, 2.4) + 0.15 * bow * bell(np.abs(x) - 4.2, 2.6))
    bottom = line + gap + lower_size * arch**0.75
    ends = 3.0 * np.clip(np.abs(t) - 0.9, 0, 1)  # the lips meet at the corners
    upper = step(np.minimum(y - top, line - y) - ends, 1.3)
    lower = step(np.minimum(y - line - gap, bottom - y) - ends, 1.5)
    inside = step(np.minimum(y - line, line + gap - y), 0.9) * (gap > 0.2)

    red = min(1.0, max(0.1, person.lip_redness)) * (1 - 0.35 * years.old) * (0.85 + 0.15 * years.growth)
    skin = np.float32(person.skin)
    lip = skin * np.float32([0.86 - 0.05 * red, 0.70 - 0.30 * red, 0.70 - 0.22 * red])
    canvas.paint(0.9 * upper, 0.84 * lip, where)
    canvas.paint(0.88 * lower, lip, where)
    teeth = linear_rgb(228, 220, 205) * np.float32([1.0, 1 - 0.08 * years.old, 1 - 0.2 * years.old])
    hollow = linear_rgb(62, 26, 24)
    canvas.paint(inside, hollow, where)
    tooth_mask = inside * step(line + 0.72 * gap - y, 0.9) * step(0.86 - np.abs(t), 0.2) * ramp(years.age, 0.4, 1.5)
    canvas.paint(0.92 * tooth_mask, 0.8 * teeth, where)
    seam = bell(y - line, 0.75) * step(1.05 - np.abs(t), 0.2)
    canvas.paint(0.72 * seam, 0.22 * lip, where)
    corners = np.exp(-np.square((np.abs(t) - 1.0) * 6.0) - np.square((y - line) * 0.5))
    canvas.tint(0.4 * corners, (0.5, 0.4, 0.38), where)
    # Lips are a little raised, the lower one more; a hollow lies below it
    canvas.height[where] += (
        0.9 * upper + 0.35 * lower_size * bell(y - line - gap - 0.45 * lower_size, 0.6 * lower_size) * arch
    )
    canvas.raise_bump(0.0, at.mouth_y + 1.0 + lower_size + 3.6 + 3.0 * shot.mouth_open, half * 0.6, 2.4, -1.4)
    canvas.tint(0.22 * bell(y - bottom - 1.8, 1.8) * arch, (0.6, 0.5, 0.47), where)


# ------------------------------------------------------------------------------------------- drawing: hair, beard


def draw_beard(canvas: Canvas) -> None:
    """Shadow, stubble or full beard, from about sixteen for those who have one."""
    person, years, at, shot = canvas.person, canvas.years, canvas.at, canvas.shot
    growth = person.beard_growth * ramp(years.age, 14.5, 24.0)
    if growth < 0.02:
        return
    worn = min(1.0, max(0.0, person.beard_habit - 0.12 + shot.beard_change)) * ramp(years.age, 16, 21)
    side = np.maximum(np.abs(canvas.x) - 15.0, 0.0)
    y = canvas.y
    cheeks = step(y - (at.mouth_y - 1.0 - 1.25 * side), 9.0)
    lip_y = 0.45 * at.nose_y + 0.55 * at.mouth_y
    moustache = (
        step(at.mouth_half + 5.0 - np.abs(canvas.x), 5.0)
        * step(y - at.nose_y - 6.0 - 0.03 * np.square(canvas.x), 3.0)
        * step(at.mouth_y + 4 - y, 4.0)
    )
    moustache *= np.clip(0.6 + 0.4 * (y - lip_y), 0.4, 1)
    below_lip = step(np.abs(canvas.x) * 0.12 + y - at.mouth_y - 9.0, 4.0)
    centre = step(at.mouth_half - 3.0 - np.abs(canvas.x), 5.0)
    beard = np.maximum(cheeks * (1 - centre * (1 - below_lip)), moustache)
    beard *= step(y - 6.0, 8.0)
    patch = noise_at("soft", canvas.x * 1.5, canvas.y * 0.8, shot.noise_place)
    colour, grey = hair_colour(canvas, 0.25)
    colour = 0.8 * colour
    grey_colour = linear_rgb(196, 194, 190)
    colour = colour + np.float32(grey * 0.85) * (grey_colour - colour)
    shadow = 0.24 * growth * (1 - 0.6 * grey)
    density = shadow + (1.0 - shadow) * worn * min(1.0, 0.45 + 0.7 * growth)
    mask = beard * np.clip(density * (1.0 + 0.12 * patch), 0, 1)
    canvas.paint(mask, (colour[:, None, None] * (1.0 + (0.2 * worn) * patch)))
    canvas.height += (1.6 * worn) * beard + (0.15 * worn) * patch * beard


def hair_tables(canvas: Canvas, outline: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Radius tables of the hairline and of the outer edge of the front hair."""
    person, years, at, shot = canvas.person, canvas.years, canvas.at, canvas.shot
    width = at.half_width
    bald = years.bald
    top = at.hairline_y - 34.0 * bald
    corner = person.hairline_corner + 0.6 * years.puberty * person.male
    fringe = max(0.0, shot.fringe + 0.25 * length - 0.15) * 16.0 * (1 - min(1.0, 1.5 * bald)) * years.hair_cover
    part = shot.parting * 5.0 * min(1.0, length + 0.4)
    lower_edge = 14.0 if length < 0.4 else 14.0 + 90.0 * (length - 0.4)

    def half(lean: float) -> list[tuple[float, float]]:
        return [
            (0.0, top + person.widows_peak + fringe),
            (0.42 * width, top - 1.0 - 9.0 * bald - corner + fringe * 0.9 + lean),
            (0.72 * width, top * 0.86 + 1.5 - 1.6 * corner - 8.0 * bald + fringe * 0.5 + lean),
            (0.90 * width, -14.0 - 6.0 * bald),
            (0.965 * width, -4.0 - 4.0 * bald),
            (1.0 * width - 2.5 * max(0.0, length - 0.4), 6.0),
            (1.02 * width - 4.0 * max(0.0, length - 0.4), lower_edge),
            (1.35 * width, lower_edge + 14.0),
            (1.2 * width, at.chin_y + 60),
            (0.0, at.chin_y + 90),
        ]

    line = outline_table(half(part), half(-part), 3.0)
    volume = (
        3.5 + 7.0 * length + 1.6 * max(0.0, shot.hair_volume) + 3.0 * max(0.0, person.hair_curl)
    ) * years.hair_cover
    volume *= 1.0 - 0.6 * min(1.0, bald)
    # Hair is thickest on top and thins out towards the ears unless it is long
    turn_share = np.minimum(np.arange(ANGLES), ANGLES - np.arange(ANGLES)) * (2.0 / ANGLES)  # 0 up, 1 down
    fade = np.clip((0.58 - turn_share) / 0.3, 0.25 + 0.75 * min(1.0, 1.6 * length), 1.0).astype(np.float32)
    return line, outline + volume * fade


def strands(canvas: Canvas) -> np.ndarray:
    """(H,W) light and dark of the hair: combed from the parting, or curly.

    No two days' hair falls alike: its pattern belongs to the shot, or it would be a fingerprint of the person.
    """
    person, shot = canvas.person, canvas.shot
    curl = min(1.0, max(0.0, person.hair_curl))
    x, y = canvas.x - 14.0 * shot.parting, canvas.y - 1.3 * canvas.at.crown_y + 25.0
    combed = noise_at("strand", np.arctan2(x, y) * 105.0, np.sqrt(x * x + y * y) * 0.7, canvas.shot.noise_place)
    if curl < 0.15:
        return combed
    curly = noise_at("spot", canvas.x * 2.4, canvas.y * 2.4, canvas.shot.noise_place)
    return (1.0 - curl) * combed + curl * curly


def paint_hair(canvas: Canvas, mask: np.ndarray, streaks: np.ndarray) -> None:
    """Lay hair over the picture; grey comes hair by hair."""
    colour, grey = hair_colour(canvas)
    light = np.clip(0.85 + 0.28 * streaks, 0.25, 1.8)
    white = np.clip(1.25 * grey + (0.35 * grey * (1.2 - grey)) * streaks, 0.0, 1.0)
    grey_colour = linear_rgb(205, 203, 200)[:, None, None]
    hair = colour[:, None, None] * light
    hair += white * (grey_colour * (0.75 + 0.25 * light) - hair)
    canvas.paint(mask, hair)


def draw_long_hair(canvas: Canvas, length: float, streaks: np.ndarray) -> None:
    """Hair that falls behind neck and shoulders."""
    years, at = canvas.years, canvas.at
    amount = ramp(length, 0.32, 0.6) * years.hair_cover
    if amount <= 0.02:
        return
    half = at.skull_half + 2.0 + 9.0 * length + 0.5 * canvas.shot.hair_volume + 2.5 * max(0.0, canvas.person.hair_curl)
    end = 20.0 + 90.0 * (length - 0.35)
    edge = half + 1.2 * streaks - 0.004 * np.square(canvas.y - 15.0)
    mask = (
        amount
        * step(edge - np.abs(canvas.x), 2.5)
        * step(end - canvas.y + 2.0 * streaks, 5.0)
        * step(canvas.y + 30.0, 20.0)
    )
    paint_hair(canvas, mask, streaks - 0.8)
    np.maximum(canvas.cover, mask, out=canvas.cover)


def draw_hair(canvas: Canvas, outline: np.ndarray, length: float, streaks: np.ndarray) -> None:
    """Hair on the skull, over forehead and temples."""
    line, outer = hair_tables(canvas, outline, length)
    years = canvas.years
    ragged = (0.8 + 1.4 * max(0.0, canvas.shot.fringe)) * streaks
    inside = canvas.radius - line.take(canvas.angle) + ragged
    mask = step(inside, 4.0) * step(outer.take(canvas.angle) - canvas.radius + 0.9 * streaks, 2.2)
    thin = max(0.12, 1.0 - 0.75 * (1.0 - years.hair_cover) - 0.35 * min(1.0, years.bald))
    mask = np.clip(mask * thin * (1.0 + (1.0 - thin) * 0.5 * streaks), 0.0, 1.0)
    # The hair shades the skin next to it
    near = bell(np.minimum(inside, 0.0), 4.0) * canvas.cover
    canvas.tint(0.30 * thin * near, (0.62, 0.55, 0.52))
    paint_hair(canvas, mask, streaks)
    canvas.height += mask * (1.5 + 0.4 * streaks)
    np.maximum(canvas.cover, mask, out=canvas.cover)


def draw_hat(canvas: Canvas, outline: np.ndarray) -> None:
    """A woollen hat down to the forehead."""
    at = canvas.at
    brim = 0.80 * at.hairline_y + 0.004 * np.square(canvas.x)
    mask = step(brim - canvas.y, 1.5) * step(outline.take(canvas.angle) + 5.0 - canvas.radius, 1.5)
    ribs = 0.9 + 0.16 * np.cos(canvas.x * 1.6)
    cuff = 1.0 - 0.35 * bell(brim - 9.0 - canvas.y, 1.0)
    canvas.paint(mask, linear_rgb(*canvas.shot.accessory)[:, None, None] * (1.5 * ribs * cuff))
    canvas.height += 3.0 * mask
    np.maximum(canvas.cover, mask, out=canvas.cover)


def draw_glasses(canvas: Canvas) -> None:
    """Frames and a faint reflection."""
    at = canvas.at
    colour = linear_rgb(*canvas.shot.accessory)
    half_x, half_y = 12.6, 9.0
    for side in (-1.0, 1.0):
        centre_x, centre_y = side * (at.eye_x + 0.3), 1.6
        where = canvas.window(centre_x + side * 5, centre_y, half_x + 12, half_y + 3)
        x, y = canvas.x[where] - centre_x, canvas.y[where] - centre_y
        box = np.sqrt(np.sqrt((x * (1 / half_x)) ** 4 + (y * (1 / half_y)) ** 4)) - 1.0
        rim = bell(box * 10.5, 1.15)
        arm = (
            step(side * x - half_x, 1.0) * step(at.half_width + 1.0 - np.abs(canvas.x[where]), 1.0) * bell(y + 3.5, 1.1)
        )
        canvas.tint(0.10 * step(-box * 10, 1.0), (0.8, 0.85, 0.9), where)
        canvas.paint(0.92 * np.maximum(rim, arm), colour, where)
    where = canvas.window(0.0, 0.0, at.eye_x - 10.0, 5.0)
    bridge = bell(canvas.y[where] + 1.0 - 0.03 * np.square(canvas.x[where]), 1.0)
    canvas.paint(0.92 * bridge * step(at.eye_x - 12.0 - np.abs(canvas.x[where]), 1.0), colour, where)


# ------------------------------------------------------------------------------------------ drawing: light, camera


def shade(canvas: Canvas, background: np.ndarray) -> np.ndarray:
    """Light the relief and put the person before the background; (3,H,W) linear light."""
    shot = canvas.shot
    # Height as the camera sees it, so that the light stays where it is when the head turns
    seen = (canvas.height - 33.0) * (math.cos(shot.yaw) * math.cos(shot.pitch))
    seen -= canvas.x * math.sin(shot.yaw) - canvas.y * math.sin(shot.pitch)
    slope_x, slope_y = np.zeros_like(seen), np.zeros_like(seen)
    slope_x[:, 1:-1] = (seen[:, 2:] - seen[:, :-2]) * (0.5 * canvas.scale)
    slope_y[1:-1] = (seen[2:] - seen[:-2]) * (0.5 * canvas.scale)
    slope_x[:, 0], slope_x[:, -1] = slope_x[:, 1], slope_x[:, -2]
    slope_y[0], slope_y[-1] = slope_y[1], slope_y[-2]
    norm = 1.0 / np.sqrt(1.0 + slope_x * slope_x + slope_y * slope_y)

    light = np.array([shot.light_x, shot.light_y - 0.42, 1.0])
    light_x, light_y, light_z = (light / np.linalg.norm(light)).tolist()
    facing = (light_z - slope_x * light_x - slope_y * light_y) * norm
    ambient = min(max(0.25 + shot.ambient, 0.1), 0.7)
    direct = np.clip(facing * 0.95 + 0.05, 0.0, 1.2)
    # From above comes more sky than from below
    sky = (0.92 - 0.25 * slope_y * norm) * ambient
    lit = sky + (1.16 - ambient) * direct
    half_x, half_y, half_z = light_x / 2, light_y / 2, (light_z + 1) / 2
    length = math.sqrt(half_x**2 + half_y**2 + half_z**2)
    mirror = np.maximum((half_z - slope_x * half_x - slope_y * half_y) * norm * (1 / length), 0.0)
    mirror = mirror * mirror
    mirror = mirror * mirror
    mirror = mirror * mirror
    mirror = mirror * mirror
    gloss = (0.045 * (1 - 0.4 * canvas.years.baby)) * mirror * mirror

    picture = canvas.colour * lit
    # Light that went into the skin comes out red, most where little comes from outside
    picture[0] += canvas.colour[0] * 0.05 * (1.0 - lit)
    picture += gloss
    picture = background + canvas.cover * (picture - background)
    colour_of_light = np.float32([1 + shot.warmth, 1.0, 1 - shot.warmth]) * np.float32(1 + shot.exposure)
    return picture * colour_of_light[:, None, None]


def blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """Picture (3,H,W) blurred by about a Gaussian of `sigma` pixels: three-tap passes, whose variances add up."""
    if sigma < 0.2:
        return values
    passes = math.ceil(sigma * sigma / 0.5)
    tap = 0.5 * sigma * sigma / passes
    for _ in range(passes):
        middle = values[:, 1:-1]
        middle = middle + tap * (values[:, 2:] + values[:, :-2] - 2.0 * middle)
        values = np.concatenate([values[:, :1], middle, values[:, -1:]], axis=1)
        middle = values[:, :, 1:-1]
        values[:, :, 1:-1] = middle + tap * (values[:, :, 2:] + values[:, :, :-2] - 2.0 * middle)
    return values


def expose(canvas: Canvas, picture: np.ndarray) -> np.ndarray:
    """Camera: tone curve, greyscale, blur, noise; linear (3,H,W) to 8-bit (H,W,3)."""
    shot = canvas.shot
    values = np.maximum(picture, 0.0)
    values = np.sqrt(values * 1.3 / (1.0 + 0.36 * values))  # highlights saturate slowly
    values = (values - 0.5) * (1.0 + shot.contrast) + 0.5
    if shot.grey:
        values[:] = 0.30 * values[0] + 0.59 * values[1] + 0.11 * values[2]
    values = blur(values, shot.blur * canvas.scale) * 255.0
    if shot.noise > 0.0:
        size = values.shape[1]
        row, column = shot.noise_place
        fine = noise_tile("fine").reshape(TILE, TILE)
        values += shot.noise * fine.take(np.arange(row, row + size) % TILE, 0).take(
            np.arange(column, column + size) % TILE, 1
        )
    values += 0.5
    np.clip(values, 0.0, 255.0, out=values)
    return np.ascontiguousarray(values.astype(np.uint8).transpose(1, 2, 0))  # (H,W,3)


def draw_face(person: Person, age: float, shot: Shot, size: int = IMAGE_SIZE) -> np.ndarray:
    """Picture of a person at an age (years, 0 to 80), uint8 (size,size,3) RGB, aligned by the five-point template."""
    if not 0 <= age <= OLDEST:
        raise UserError(f"age is {age} years, but faces are drawn from 0 to {OLDEST}: give an age in between")
    years = years_of(person, float(age))
    person = at_growth(person, years.growth)
    canvas = start_canvas(person, years, shot, size)
    outline = face_outline(canvas)
    length = min(1.0, max(0.0, person.hair_habit + shot.hair_change)) * (0.2 + 0.8 * ramp(age, -1, 9))
    streaks = strands(canvas)

    draw_behind(canvas)
    background = canvas.colour.copy()
    draw_long_hair(canvas, length, streaks)
    draw_body(canvas)
    draw_ears(canvas)
    shape_relief(canvas)
    edge = outline.take(canvas.angle)
    face = step(edge - canvas.radius, 1.3)
    # The head turns away from the camera towards its outline
    rim = np.square(np.minimum(canvas.radius / edge, 1.1))
    canvas.height -= 6.0 * rim * rim * rim
    canvas.paint(face, skin_colour(canvas))
    np.maximum(canvas.cover, face, out=canvas.cover)
    draw_marks(canvas)
    draw_wrinkles(canvas)
    draw_beard(canvas)
    draw_nose(canvas)
    draw_mouth(canvas)
    catchlights = [draw_eye(canvas, side) for side in (-1.0, 1.0)]
    for side in (-1.0, 1.0):
        draw_brow(canvas, side)
    draw_hair(canvas, outline, length, streaks)
    if shot.hat:
        draw_hat(canvas, outline)
    if shot.glasses:
        draw_glasses(canvas)
    picture = shade(canvas, background)
    for x, y in catchlights:
        where = canvas.window(x, y, 2.0, 2.0)
        spark = bell(canvas.x[where] - x, 0.8) * bell(canvas.y[where] - y, 0.8)
        picture[(slice(None), *where)] += 0.55 * spark
    return expose(canvas, picture)


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """JPEG file of an image, uint8 (H,W,3)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
