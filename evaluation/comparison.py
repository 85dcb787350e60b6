"""Two faces -> an answer and what it rests on; faces and a gallery -> the nearest pictures. No network runs here.

An answer is only as good as the calibration: without one there is a cosine and no decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evaluation.arrays import blocks, unit_rows
from evaluation.calibration import BenchmarkCalibration, Calibration, OperatingPoint, gap_of
from evaluation.verification import COSINE_DECIMALS
from meta import AGE_GROUP_MIDDLES, AGE_GROUP_NAMES, UserError

SAME_PICTURE = 1 - 1e-6  # cosines above: a picture and its copy
FEW_IMPOSTORS = 10  # a threshold that rests on fewer comes with a warning


class Face(NamedTuple):
    """One picture's embedding."""

    name: str
    embedding: np.ndarray  # (D,), of both views, L2-normalised
    age_probabilities: np.ndarray | None = None  # (8,)


class AgeGuess(NamedTuple):
    """The most probable age group of a picture."""

    group: str  # "26-35"
    probability: float
    middle: int  # years, the group's

    def as_plain(self) -> dict[str, Any]:
        return {"group": self.group, "probability": self.probability}


class AgeGap(NamedTuple):
    """What the years between two pictures mean for the answer."""

    years: float
    is_guess: bool  # from the age groups' middles, not from ages that were given
    years_bin: str  # "21-30"
    num_genuine: int  # pairs of the benchmark in the bin
    tar_percent: float | None  # of these that pass the threshold, None where they are too few
    other_benchmark: str | None  # one that has enough, where this one has too few


@dataclass(frozen=True)
class Answer:
    """Whether two pictures show one person, as decided by a threshold."""

    names: tuple[str, str]
    cosine: float
    passes: bool | None  # None without a calibration
    benchmark: BenchmarkCalibration | None
    point: OperatingPoint | None
    ages: tuple[AgeGuess, AgeGuess] | None  # None without an age branch
    gap: AgeGap | None

    def as_plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        plain: dict[str, Any] = {"names": list(self.names), "cosine": self.cosine, "same_person": self.passes}
        if self.point is not None:
            plain |= threshold_as_plain(self.benchmark, self.point)
        if self.ages is not None:
            plain["age_groups"] = [age.as_plain() for age in self.ages]
        if self.gap is not None:
            plain["age_gap"] = self.gap._asdict()
        return plain

    def sentences(self) -> list[str]:
        """The same as text."""
        sentences = [f"{' and '.join(self._short_names())}: cosine {self.cosine:.3f}."]
        if self.cosine >= SAME_PICTURE:
            sentences.append("The two are the same picture, or a copy of it: that says nothing of two photographs.")
        if self.point is not None:
            decision = "Taken for the same person" if self.passes else "Not taken for the same person"
            sentences.append(decision + self._by_threshold())
            sentences += threshold_warnings(self.benchmark, self.point)
        if self.ages is not None:
            guesses = [f"{name} looks {age.group} years old (probability {age.probability:.2f})"
                     for name, age in zip(self._short_names(), self.ages, strict=True)]  # fmt: skip
            sentences.append(f"{', '.join(guesses)}.")
        if self.gap is not None:
            sentences.append(self._on_gap())
        return sentences

    def _short_names(self) -> tuple[str, str]:
        """Without folders, where the base names differ."""
        a, b = (name.rpartition("/")[2] for name in self.names)
        return self.names if a == b else (a, b)

    def _by_threshold(self) -> str:
        point = self.point
        side = "at or above" if self.passes else "below"
        return f" at FAR {point.far}: the cosine is {side} {threshold_in_words(self.benchmark, point)}."

    def _on_gap(self) -> str:
        gap, title = self.gap, self.benchmark.title
        apart = f"{gap.years:g} years apart"
        if gap.is_guess:
            groups = " and ".join(f"{age.group} (probability {age.probability:.2f})" for age in self.ages)
            apart = f"about {apart}, which is guessed from the age groups {groups}"
        if gap.tar_percent is None:
            other = f"; --benchmark {gap.other_benchmark} has enough" if gap.other_benchmark else ""
            return (f"The faces are {apart}: {title} has too few genuine pairs {gap.years_bin} years apart "
                    f"({gap.num_genuine}) to say how many of such pass{other}.")  # fmt: skip
        failing = f", so {100 - gap.tar_percent:.1f} % of such pairs of one person fail like this one"
        return (f"The faces are {apart}: of {gap.num_genuine:,} genuine pairs {gap.years_bin} years apart "
                f"{gap.tar_percent:.1f} % pass this threshold on {title}, of all its pairs "
                f"{self.point.tar_percent:.1f} %{'' if self.passes else failing}.")  # fmt: skip


def threshold_in_words(benchmark: BenchmarkCalibration, point: OperatingPoint) -> str:
    return (f"{point.threshold:.3f}, which at most {point.impostors_allowed:,} of {benchmark.num_impostor:,} impostor "
            f"pairs of {benchmark.title} reach")  # fmt: skip


def threshold_warnings(benchmark: BenchmarkCalibration, point: OperatingPoint) -> list[str]:
    """Sentences where the threshold hangs on few pairs, or was not measured on people at all."""
    warnings = []
    if point.impostors_allowed < FEW_IMPOSTORS:
        count = point.impostors_allowed
        alike = f"{count} impostor pairs" if count > 1 else "one impostor pair"
        warnings.append(f"That threshold hangs on the {alike} most alike: take it with care, or ask for a larger FAR.")
    if benchmark.is_drawn:
        warnings.append(f"That threshold was measured on the drawn faces of {benchmark.title}: of photographs of "
                        "people it says nothing.")  # fmt: skip
    return warnings


def threshold_as_plain(benchmark: BenchmarkCalibration, point: OperatingPoint) -> dict[str, Any]:
    return {
        "far": point.far,
        "threshold": point.threshold,
        "benchmark": benchmark.name,
        "num_impostor": benchmark.num_impostor,
        "drawn_faces": benchmark.is_drawn,
        "impostors_allowed": point.impostors_allowed,
        "tar_percent": point.tar_percent,
    }


def compare_faces(
    a: Face,
    b: Face,
    calibration: Calibration | None = None,
    far: float = 1e-3,
    benchmark: str | None = None,
    ages: tuple[int, int] | None = None,
) -> Answer:
    """Whether two faces are of one person, at the threshold that the calibration has for `far`.

    `benchmark` says which one's threshold, else it is that with the most impostor pairs. `ages` are the years of the
    two faces where they are known; else the middles of the most probable age groups stand for them.

    Raises:
        UserError: embeddings of two sizes, a FAR or a benchmark that the calibration does not have.
    """
    if a.embedding.shape != b.embedding.shape:
        raise UserError(f"{a.name} has {len(a.embedding)} numbers and {b.name} {len(b.embedding)}: embed both alike.")
    cosine = float(cosines(a.embedding[None], b.embedding[None])[0, 0])
    guesses = None
    if a.age_probabilities is not None and b.age_probabilities is not None:
        guesses = guess_age(a.age_probabilities), guess_age(b.age_probabilities)
    if calibration is None:
        return Answer((a.name, b.name), cosine, None, None, None, guesses, None)
    chosen, point = calibration.at(far, benchmark)
    gap = None
    if ages is not None or guesses is not None:
        years = ages if ages is not None else (guesses[0].middle, guesses[1].middle)
        gap = _gap(calibration, point, abs(years[0] - years[1]), is_guess=ages is None)
    return Answer((a.name, b.name), cosine, cosine >= point.threshold, chosen, point, guesses, gap)


def _gap(calibration: Calibration, point: OperatingPoint, years: float, is_guess: bool) -> AgeGap:
    years_bin = gap_of(years)
    num_genuine, percent = point.tar_by_gap.get(years_bin, (0, None))
    other = calibration.benchmark_with(years_bin) if percent is None else None
    return AgeGap(years, is_guess, years_bin, num_genuine, percent, other)


def guess_age(probabilities: np.ndarray) -> AgeGuess:
    """The most probable of the age groups (8,)."""
    group = int(np.argmax(probabilities))
    return AgeGuess(AGE_GROUP_NAMES[group], float(probabilities[group]), AGE_GROUP_MIDDLES[group])


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines (P,G) float64 of rows (P,D) and (G,D), rounded as those that the thresholds come from."""
    return np.clip(np.round(unit_rows(a) @ unit_rows(b).T, COSINE_DECIMALS), -1.0, 1.0)


class Match(NamedTuple):
    """One picture of the gallery."""

    position: int
    cosine: float


def nearest(probe: np.ndarray, gallery: np.ndarray, count: int) -> list[list[Match]]:
    """The `count` gallery embeddings (G,D) most alike each of the probes (P,D), best first, ties by position.

    Raises:
        UserError: embeddings of two sizes.
    """
    if probe.shape[1] != gallery.shape[1]:
        raise UserError(f"the gallery has {gallery.shape[1]} numbers a picture, the photographs {probe.shape[1]}: "
                        "embed both alike.")  # fmt: skip
    best = np.empty((len(probe), 0))
    places = np.empty((len(probe), 0), np.int64)
    for rows in blocks(len(gallery), max(len(probe), gallery.shape[1])):
        best = np.concatenate([best, cosines(probe, gallery[rows])], axis=1)
        places = np.concatenate([places, np.tile(np.arange(rows.start, rows.stop), (len(probe), 1))], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best, places = np.take_along_axis(best, order, axis=1), np.take_along_axis(places, order, axis=1)
    return [
        [Match(int(place), float(score)) for place, score in zip(row_places, row, strict=True)]
        for row_places, row in zip(places, best, strict=True)
    ]


class Neighbour(NamedTuple):
    """One picture of the gallery, seen from a probe."""

    name: str
    cosine: float
    passes: bool | None  # None without a calibration

    def as_plain(self) -> dict[str, Any]:
        return {key: value for key, value in self._asdict().items() if value is not None}

    def sentence(self) -> str:
        same = "  (the same picture, or a copy)" if self.cosine >= SAME_PICTURE else ""
        return f"  {self.cosine:6.3f}  {self.name}{'  passes' if self.passes else ''}{same}"


class Search(NamedTuple):
    """One probe and the pictures of the gallery most alike, best first."""

    name: str
    age: AgeGuess | None  # None without an age branch
    matches: list[Neighbour]

    def as_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"name": self.name, "matches": [match.as_plain() for match in self.matches]}
        return plain if self.age is None else plain | {"age_group": self.age.as_plain()}

    def sentences(self) -> list[str]:
        looks = ""
        if self.age is not None:
            looks = f" (looks {self.age.group} years old, probability {self.age.probability:.2f})"
        return [f"{self.name}{looks}:", *(match.sentence() for match in self.matches)]


@dataclass(frozen=True)
class Searches:
    """What a gallery has for all probes, and the threshold at which a match passes."""

    num_gallery: int
    searches: list[Search]
    benchmark: BenchmarkCalibration | None  # None without a calibration
    point: OperatingPoint | None
    num_in_gallery: int = 0  # probes that are in the gallery themselves and are left out of their own search

    def as_plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        plain = {
            "num_gallery": self.num_gallery,
            "num_in_gallery": self.num_in_gallery,
            "searches": [search.as_plain() for search in self.searches],
        }
        return plain if self.point is None else plain | threshold_as_plain(self.benchmark, self.point)

    def sentences(self) -> list[str]:
        """The same as text."""
        sentences = [sentence for search in self.searches for sentence in search.sentences()]
        if self.num_in_gallery:
            sentences.append(f"{self.num_in_gallery:,} pictures are in the gallery under the same name: each is left "
                             "out of its own search.")  # fmt: skip
        if self.point is None:
            return sentences
        expected = self.num_gallery * float(self.point.far)
        return [
            *sentences,
            f"What passes at FAR {self.point.far} has a cosine at or above "
            f"{threshold_in_words(self.benchmark, self.point)}.",
            f"Of {self.num_gallery:,} pictures of other people in a gallery about {expected:.2g} pass.",
            *threshold_warnings(self.benchmark, self.point),
        ]


def search_gallery(
    probes: Sequence[Face],
    names: Sequence[str],
    gallery: np.ndarray,
    *,
    count: int,
    calibration: Calibration | None = None,
    far: float = 1e-3,
    benchmark: str | None = None,
) -> Searches:
    """The `count` pictures most alike each probe in a gallery of embeddings (G,D) and their names (G).

    A probe that is in the gallery itself, by its name and its embedding, is not found as its own match.

    Raises:
        UserError: embeddings of two sizes, a FAR or a benchmark that the calibration does not have.
    """
    chosen, point = calibration.at(far, benchmark) if calibration else (None, None)

    def neighbour(match: Match) -> Neighbour:
        passes = None if point is None else match.cosine >= point.threshold
        return Neighbour(str(names[match.position]), match.cosine, passes)

    found = nearest(np.stack([probe.embedding for probe in probes]), gallery, count + 1)
    others = [
        [match for match in matches if not (match.cosine >= SAME_PICTURE and names[match.position] == probe.name)]
        for probe, matches in zip(probes, found, strict=True)
    ]
    num_in_gallery = sum(len(of_probe) < len(matches) for of_probe, matches in zip(others, found, strict=True))
    searches = [
        Search(
            probe.name,
            None if probe.age_probabilities is None else guess_age(probe.age_probabilities),
            [neighbour(match) for match in matches[:count]],
        )
        for probe, matches in zip(probes, others, strict=True)
    ]
    return Searches(len(gallery), searches, chosen, point, num_in_gallery)
