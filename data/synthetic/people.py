"""The people of the made-up data set: who they are for life, what age does to them, and what a picture adds.

Three things make a picture, and they are kept apart: a `Person` (what stays for life), an age (a continuous path from
0 to 80 years) and a `Shot` (everything that is neither).

Units: face units, which are pixels of an average adult face on the 112x112 five-point template. The origin of the
face plane lies midway between the eyes, x to the picture's right, y down, z towards the camera.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from meta import UserError

OLDEST = 80  # years; the age path ends here

# The first word of every random stream after the seed: streams of different purpose never meet.
PERSON_STREAM, AGES_STREAM, SHOT_STREAM, LAYOUT_STREAM = 1, 2, 3, 4


def random_stream(*key: int) -> np.random.Generator:
    """Generator that depends on the key and on nothing else."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def linear_rgb(red: float, green: float, blue: float) -> np.ndarray:
    """(3,) float32 reflectance of an 8-bit colour. Squaring stands in for the sRGB curve: its root is cheap."""
    return np.array([red, green, blue], np.float32) ** 2 / np.float32(255**2)


# ------------------------------------------------------------------------------------------------------- identity

SKIN_TONES = np.stack(  # from the least to the most melanin
    [
        linear_rgb(*rgb)
        for rgb in [(250, 219, 199), (240, 196, 162), (222, 170, 130), (186, 128, 88), (134, 86, 58), (88, 56, 42)]
    ]
)
HAIR_COLOURS = np.stack(  # black, dark brown, brown, chestnut, copper, dark blond, blond
    [
        linear_rgb(*rgb)
        for rgb in [
            (30, 26, 25),
            (52, 36, 28),
            (84, 58, 40),
            (104, 60, 36),
            (158, 82, 40),
            (146, 114, 76),
            (196, 164, 112),
        ]
    ]
)
IRIS_COLOURS = np.stack(  # dark brown, brown, hazel, green, grey, blue
    [
        linear_rgb(*rgb)
        for rgb in [(52, 32, 22), (92, 58, 34), (122, 96, 52), (98, 122, 82), (126, 138, 146), (92, 136, 176)]
    ]
)


def trait(mean: float, spread: float, male: float = 0.0) -> Any:
    """A field of `Person` drawn from a normal distribution cut at 2.3 spreads; `male` is added for men."""
    return field(metadata={"mean": mean, "spread": spread, "male": male})


def shape(mean: float, spread: float, male: float = 0.0) -> Any:
    """The same for a trait that only growth brings out: infants are more alike than adults, boys and girls too."""
    return field(metadata={"mean": mean, "spread": spread, "male": male, "grows": True})


@dataclass(frozen=True)
class Person:
    """What stays for life. Ratios are to an average adult; names in `_up`, `_out` and the like are face units."""

    index: int
    male: bool
    # Head
    face_width: float = shape(1.0, 0.065, 0.015)
    skull_width: float = shape(1.0, 0.035)
    forehead_height: float = shape(1.0, 0.09)
    lower_face: float = shape(1.0, 0.05, 0.01)
    cheekbone_out: float = shape(0.0, 1.5)
    cheek_fullness: float = shape(0.0, 1.0, -0.2)
    jaw_width: float = shape(0.985, 0.085, 0.05)
    jaw_square: float = shape(0.0, 1.0, 0.6)
    chin_width: float = shape(0.95, 0.22, 0.12)
    chin_down: float = shape(-0.5, 2.4, 1.0)
    chin_cleft: float = shape(-0.3, 0.7, 0.2)
    # Eyes and brows
    eye_spacing: float = shape(1.0, 0.065)
    eye_width: float = shape(1.0, 0.09)
    eye_opening: float = shape(1.03, 0.2, -0.09)
    eye_tilt: float = shape(0.03, 0.1)
    eye_depth: float = shape(0.0, 1.0, 0.3)
    eyelid_fold: float = shape(0.55, 0.45)
    brow_up: float = shape(11.8, 1.8, -0.8)
    brow_arch: float = shape(1.5, 1.3, -0.5)
    brow_slope: float = shape(0.0, 0.13)
    brow_thickness: float = shape(0.85, 0.36, 0.3)
    brow_length: float = shape(1.0, 0.1)
    brow_density: float = shape(0.78, 0.2, 0.1)
    # Nose and mouth
    nose_length: float = shape(1.0, 0.1, 0.01)
    nose_width: float = shape(0.98, 0.18, 0.06)
    nose_height: float = shape(1.0, 0.22, 0.08)
    nose_bridge: float = shape(1.0, 0.25)
    nose_tip: float = shape(1.0, 0.22)
    mouth_down: float = shape(0.0, 1.4)
    mouth_width: float = shape(1.0, 0.12, 0.02)
    upper_lip: float = shape(1.05, 0.38, -0.1)
    lower_lip: float = shape(1.05, 0.32, -0.06)
    lip_bow: float = shape(0.5, 0.35)
    lip_redness: float = shape(0.5, 0.22, -0.15)
    corner_up: float = shape(0.5, 0.9)
    # Ears
    ear_size: float = shape(1.0, 0.11, 0.03)
    ear_out: float = shape(2.6, 1.6)
    # Skin and hair
    skin_redness: float = trait(0.0, 0.5)
    skin_yellowness: float = trait(0.0, 0.5)
    hairline_up: float = trait(0.0, 3.0, 0.3)
    hairline_corner: float = trait(0.0, 1.0, 0.5)
    widows_peak: float = trait(0.0, 1.4)
    hair_curl: float = trait(0.35, 0.4)
    hair_habit: float = trait(0.68, 0.2, -0.58)
    # Ageing
    ageing_rate: float = trait(1.0, 0.1)
    grey_onset: float = trait(46.0, 7.0)
    bald_onset: float = trait(52.0, 10.0, -18.0)
    baldness: float = trait(0.12, 0.08, 0.38)
    wrinkle_depth: float = trait(1.0, 0.25)
    wrinkle_place: float = trait(0.0, 1.0)
    child_fairness: float = trait(0.5, 0.3)
    # Beard, colours, marks, asymmetry: drawn together in `sample_person`
    beard_growth: float = 0.0  # 0..1, from none to thick
    beard_habit: float = 0.0  # 0..1, from shaven to fully grown
    skin: tuple[float, float, float] = ()  # linear reflectance
    melanin: float = 0.0  # 0..1
    hair: tuple[float, float, float] = ()
    iris: tuple[float, float, float] = ()
    freckles: float = 0.0  # 0..1
    moles: tuple[tuple[float, float, float, float], ...] = ()  # x, y, radius, years of age when it appears
    scar: tuple[float, float, float, float] = ()  # x, y, angle in radians, half length; empty: none
    asymmetry: tuple[float, ...] = ()  # eye, brow, mouth corner heights; nose, chin, mouth sideways
    texture: tuple[int, int] = ()  # where in the noise tiles the freckles and spots of this skin lie


def palette(colours: np.ndarray, position: float) -> np.ndarray:
    """Colour at `position` 0..1 along a row of colours, (3,)."""
    place = min(max(position, 0.0), 1.0) * (len(colours) - 1)
    low = min(int(place), len(colours) - 2)
    return colours[low] + np.float32(place - low) * (colours[low + 1] - colours[low])


def sample_person(seed: int, index: int) -> Person:
    """Person number `index` of the unlimited population of `seed`."""
    stream = random_stream(seed, PERSON_STREAM, index)
    male = bool(stream.random() < 0.5)
    values: dict = {}
    for entry in dataclasses.fields(Person):
        if "mean" in entry.metadata:
            deviation = float(np.clip(stream.standard_normal(), -2.3, 2.3))
            mean = entry.metadata["mean"] + male * entry.metadata["male"]
            values[entry.name] = mean + entry.metadata["spread"] * deviation
    if male:
        values["beard_growth"] = float(np.clip(stream.normal(0.65, 0.3), 0.05, 1.0))
        values["beard_habit"] = float(stream.beta(0.7, 1.2))

    melanin = float(stream.beta(0.9, 1.3))
    # Fair hair and light eyes are rare on dark skin; on light skin everything is found.
    hair_place = float(stream.random()) * max(0.12, 1.0 - 1.7 * melanin)
    iris_place = float(stream.random()) * max(0.2, 1.0 - 1.5 * melanin)
    skin = palette(SKIN_TONES, melanin)
    skin = skin * np.float32([1.0, 1 - 0.05 * values["skin_redness"], 1 - 0.09 * values["skin_yellowness"]])
    num_moles = int(stream.integers(0, 4))
    moles = tuple(
        (float(x), float(y), float(radius), float(years))
        for x, y, radius, years in zip(
            stream.uniform(-30, 30, num_moles),
            stream.uniform(-26, 50, num_moles),
            stream.uniform(0.6, 1.4, num_moles),
            stream.uniform(1, 12, num_moles),
            strict=True,
        )
    )
    scar = (
        float(stream.choice([-1, 1]) * stream.uniform(8, 28)),
        float(stream.choice([stream.uniform(-28, -16), stream.uniform(12, 42)])),
        float(stream.uniform(0, math.pi)),
        float(stream.uniform(3, 7)),
    )
    return Person(
        index=index,
        male=male,
        **values,
        skin=tuple(skin.tolist()),
        melanin=melanin,
        hair=tuple((palette(HAIR_COLOURS, hair_place) * np.float32(stream.uniform(0.75, 1.2))).tolist()),
        iris=tuple((palette(IRIS_COLOURS, iris_place) * np.float32(stream.uniform(0.8, 1.15))).tolist()),
        freckles=float(max(0.0, stream.normal(0.0, 0.45))) * max(0.0, 1 - 1.6 * melanin),
        moles=moles,
        scar=scar if stream.random() < 0.12 else (),
        asymmetry=tuple(float(x) for x in np.clip(stream.standard_normal(6), -2, 2)),
        texture=(int(stream.integers(0, 256)), int(stream.integers(0, 256))),
    )


# ------------------------------------------------------------------------------------------------------- age path


def ramp(x: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, smooth between."""
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


GROWING = {entry.name: entry.metadata["mean"] for entry in dataclasses.fields(Person) if "grows" in entry.metadata}


def at_growth(person: Person, growth: float) -> Person:
    """The person with a child's shape: less than half of what sets an adult's face apart is there at birth."""
    if growth >= 1.0:
        return person
    share = 0.42 + 0.58 * growth
    values = {name: mean + share * (getattr(person, name) - mean) for name, mean in GROWING.items()}
    return dataclasses.replace(person, **values)


@dataclass(frozen=True)
class Years:
    """What the years do, each from 0 (not at all) to about 1."""

    age: float
    growth: float  # of the face towards adult proportions
    baby: float  # 1 - growth
    puberty: float
    wrinkles: float
    sag: float
    old: float  # bones, cartilage, lips
    spots: float
    grey: float
    bald: float
    hair_cover: float  # a newborn's hair is thin


def years_of(person: Person, age: float) -> Years:
    """The age path: continuous in `age` (years, 0 to 80)."""
    growth = float(np.interp(age, (0, 1, 3, 6, 10, 14, 18), (0.0, 0.2, 0.4, 0.58, 0.76, 0.92, 1.0)))
    felt = 25 + (age - 25) * person.ageing_rate if age > 25 else age
    return Years(
        age=age,
        growth=growth,
        baby=1.0 - growth,
        puberty=ramp(age, 10.5, 18.0),
        wrinkles=min(max((felt - 26) / 54, 0.0), 1.2) ** 1.25,
        sag=ramp(felt, 30, 92) * 1.15,
        old=ramp(felt, 28, 90),
        spots=ramp(felt, 40, 88),
        grey=ramp(age, person.grey_onset - 8, person.grey_onset + 32),
        bald=max(0.0, person.baldness) * 1.6 * ramp(age, person.bald_onset - 10, person.bald_onset + 30),
        hair_cover=0.12 + 0.88 * ramp(age, -0.5, 4.0),
    )


@dataclass(frozen=True)
class Proportions:
    """Where things are on the face at this age, in face units."""

    eye_x: float
    eye_width: float  # half
    brow_y: float
    nose_y: float  # tip
    nose_half: float
    nose_z: float
    mouth_y: float
    mouth_half: float
    chin_y: float
    crown_y: float
    hairline_y: float
    half_width: float  # at the cheekbones
    skull_half: float


def proportions_of(person: Person, years: Years, shot: "Shot") -> Proportions:
    """Landmarks of a face: an infant's features sit low and close together below a large forehead."""
    growth, baby, old = years.growth, years.baby, years.old
    lower = person.lower_face * (0.77 + 0.23 * growth)
    return Proportions(
        eye_x=17.6 * person.eye_spacing,
        eye_width=8.5 * person.eye_width * (1 + 0.12 * baby),
        brow_y=-person.brow_up * (0.92 + 0.08 * growth) + 1.6 * years.sag - 2.2 * shot.brow_raise,
        nose_y=20.6 * person.nose_length * (0.68 + 0.32 * growth) * (1 + 0.09 * old),
        nose_half=8.0 * person.nose_width * (0.86 + 0.14 * growth) * (1 + 0.10 * old),
        nose_z=11.0 * person.nose_height * (0.5 + 0.5 * growth),
        mouth_y=(40.6 + person.mouth_down) * lower + 0.8 * old,
        mouth_half=14.4 * person.mouth_width * (0.74 + 0.26 * growth) * (1 + 0.03 * old) + 1.9 * shot.smile,
        chin_y=(58.5 + person.chin_down * (0.5 + 0.5 * growth)) * lower - 1.0 * baby + 1.5 * shot.mouth_open,
        crown_y=-63.0 * (0.8 + 0.2 * person.forehead_height) * (1 + 0.17 * baby),
        hairline_y=-34.5 * person.forehead_height * (1 + 0.16 * baby) - person.hairline_up,
        half_width=36.6 * person.face_width * (1 + 0.04 * baby) + 0.5 * shot.weight,
        skull_half=37.4 * person.face_width * person.skull_width * (1 + 0.14 * baby),
    )


# ------------------------------------------------------------------------------------------------------- nuisance


def wobble(spread: float, limit: float = 2.0) -> Any:
    """A field of `Shot`, 0 when neutral, drawn from a normal distribution cut at `limit` spreads."""
    return field(default=0.0, metadata={"spread": spread, "limit": limit})


@dataclass(frozen=True)
class Shot:
    """How one picture was taken. Every default is neutral."""

    # Pose in radians, misalignment in face units
    yaw: float = wobble(0.19)
    pitch: float = wobble(0.1)
    roll: float = wobble(0.035)
    shift_x: float = wobble(0.8)
    shift_y: float = wobble(0.8)
    zoom: float = wobble(0.022)
    # Light: direction, share of ambient, exposure, colour
    light_x: float = wobble(0.42)
    light_y: float = wobble(0.22)
    ambient: float = wobble(0.09)
    exposure: float = wobble(0.17)
    warmth: float = wobble(0.09)
    contrast: float = wobble(0.08)
    # Expression
    smile: float = wobble(0.45)
    mouth_open: float = wobble(0.5)
    brow_raise: float = wobble(0.35)
    squint: float = wobble(0.12)
    gaze: float = wobble(0.5)
    # Habits of the day
    weight: float = wobble(0.7)
    hair_change: float = wobble(0.14)
    hair_volume: float = wobble(0.5)
    parting: float = wobble(0.6)
    fringe: float = wobble(0.5)
    beard_change: float = wobble(0.28)
    # Now and then
    hat: bool = field(default=False, metadata={"chance": 0.03})
    glasses: bool = field(default=False, metadata={"chance": 0.1})
    grey: bool = field(default=False, metadata={"chance": 0.08})
    # Surroundings, 8-bit colours
    background: tuple[float, float, float] = (150.0, 155.0, 160.0)
    background_slope: tuple[float, float] = (0.0, 0.0)  # change of brightness across the picture
    clothes: tuple[float, float, float] = (80.0, 84.0, 96.0)
    accessory: tuple[float, float, float] = (40.0, 36.0, 36.0)  # hat and frames
    # Camera
    blur: float = 0.0  # standard deviation, face units
    noise: float = 0.0  # standard deviation, 8-bit steps
    jpeg_quality: int = 95
    noise_place: tuple[int, int] = (0, 0)  # where in the noise tiles this picture lies


def sample_shot(rng: np.random.Generator, strength: float = 1.0) -> Shot:
    """A picture's nuisance; `strength` 0 gives the neutral shot, 1 the usual one."""
    if strength < 0:
        raise UserError(f"nuisance strength is {strength}, which is below 0: give 0 (neutral), 1 (usual) or between")
    if strength == 0:
        return Shot()
    values: dict = {}
    for entry in dataclasses.fields(Shot):
        if "spread" in entry.metadata:
            limit = entry.metadata["limit"]
            values[entry.name] = (
                strength * entry.metadata["spread"] * float(np.clip(rng.standard_normal(), -limit, limit))
            )
        elif "chance" in entry.metadata:
            values[entry.name] = bool(rng.random() < strength * entry.metadata["chance"])
    values["mouth_open"] = max(0.0, values["mouth_open"])
    values["smile"] = max(values["smile"], -0.25 * strength)
    neutral = Shot()
    share = min(strength, 1.0)

    def towards(target: np.ndarray, start: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(float(s + share * (t - s)) for s, t in zip(start, target, strict=True))

    tint = rng.uniform(0.85, 1.15, 3)
    return Shot(
        **values,
        background=towards(np.clip(rng.uniform(30, 225) * tint, 10, 245), neutral.background),
        background_slope=tuple(float(x) for x in strength * rng.uniform(-0.35, 0.35, 2)),
        clothes=towards(rng.uniform(20, 220, 3), neutral.clothes),
        accessory=towards(rng.uniform(15, 130) * rng.uniform(0.7, 1.3, 3), neutral.accessory),
        blur=strength * float(np.clip(rng.normal(0.25, 0.3), 0.0, 0.9)),
        noise=strength * float(rng.uniform(0.5, 4.0)),
        jpeg_quality=int(round(95 - min(strength, 1.5) * rng.uniform(0, 28))),
        noise_place=(int(rng.integers(0, 256)), int(rng.integers(0, 256))),
    )
