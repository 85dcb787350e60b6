"""From a test to an answer: what test.py found out about a model, for embed.py to say "the same person" by.

`calibration.json` holds for each model that was tested, known by its fingerprint (models.weights.model_fingerprint: the
weights alone do not decide what is computed; of a file of embeddings that of the model that made them, where the file
says it, else its own SHA-256), and for each benchmark the thresholds of some false-accept rates (FAR),
how many impostor pairs they rest on, and what share of genuine pairs they let pass (TAR), by the years between the two
pictures. A FAR that the impostor pairs do not allow is left out, with the reason beside it.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.age_gap import ALL, COMMON_RATES, GAP_LOWER_EDGES, bin_names
from meta import UserError
from utils.files import write_json
from utils.wrong_files import wrong_file

SCHEMA = 1
FILE_NAME = "calibration.json"
MAX_CHARACTERS = 10_000_000  # test.py writes some 4,000 for each benchmark of a model
GAPS = bin_names(GAP_LOWER_EDGES)
MADE_BY = "test.py writes such files beside its results.json"


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold of a benchmark: scores at or above it pass."""

    far: str  # a key of COMMON_RATES
    threshold: float  # a cosine
    impostors_allowed: int  # how many impostor pairs pass at most: where they are few the threshold hangs on them
    tar_percent: float  # of all genuine pairs
    tar_by_gap: dict[str, tuple[int, float | None]]  # years between -> genuine pairs, percent that pass


@dataclass(frozen=True)
class BenchmarkCalibration:
    """What one benchmark says of one model."""

    name: str
    title: str
    num_genuine: int
    num_impostor: int
    points: dict[str, OperatingPoint]  # by FAR
    left_out: dict[str, str]  # FAR -> why it is not among the points
    is_drawn: bool = False  # its faces are drawn by program


@dataclass(frozen=True)
class Calibration:
    """What a calibration file says of one model."""

    path: str
    benchmarks: dict[str, BenchmarkCalibration]

    def at(self, far: float, benchmark: str | None = None) -> tuple[BenchmarkCalibration, OperatingPoint]:
        """The operating point of a FAR, of the benchmark with the most impostor pairs unless one is named.

        Raises:
            UserError: a benchmark or a FAR that this file does not have.
        """
        if benchmark is not None and benchmark not in self.benchmarks:
            raise UserError(f"--benchmark {benchmark} is not in {self.path}: give one of {', '.join(self.benchmarks)}.")
        chosen = self.benchmarks[benchmark] if benchmark else max(
            self.benchmarks.values(), key=lambda one: (one.num_impostor, one.name)
        )  # fmt: skip
        for rate, point in chosen.points.items():
            if math.isclose(float(rate), far, rel_tol=1e-9):
                return chosen, point
        reasons = [why for rate, why in chosen.left_out.items() if math.isclose(float(rate), far, rel_tol=1e-9)]
        why = f" ({reasons[0]})" if reasons else ""
        advice = f"give one of {', '.join(chosen.points)}" if chosen.points else "give another --benchmark"
        raise UserError(f"--far {far:g} is not calibrated by {chosen.name} in {self.path}{why}: {advice}.")

    def benchmark_with(self, gap: str) -> str | None:
        """The name of the benchmark with the most genuine pairs of this gap, None where each has too few."""
        counts = {
            name: num_genuine
            for name, one in self.benchmarks.items()
            for point in one.points.values()
            for num_genuine, percent in [point.tar_by_gap.get(gap, (0, None))]
            if percent is not None
        }
        return max(counts, key=lambda name: (counts[name], name)) if counts else None


def gap_of(years: float) -> str:
    """The bin that holds so many years between two pictures, rounded: "21-30"."""
    return GAPS[sum(round(years) >= low for low in GAP_LOWER_EDGES) - 1]


def check_far(far: float) -> None:
    """Raises UserError for a false-accept rate that no calibration has."""
    if not any(math.isclose(float(rate), far, rel_tol=1e-9) for rate in COMMON_RATES):
        raise UserError(f"--far {far:g} is no rate that test.py calibrates: give one of {', '.join(COMMON_RATES)}.")


# ------------------------------------------------------------------------------------------------------------ writing


def write_calibrations(folder: Path, models: list[dict[str, Any]], join: str) -> Path | None:
    """Writes calibration.json, of the models that have an analysis, into a folder; returns its path.

    `models` are those of results.json, with name, weights or embeddings, sha256, model_fingerprint and results; `join`
    is that of their analysis. With nothing to write a file that is there already stays, and None is returned.
    """
    calibrations = []
    for model in models:
        benchmarks = {name: calibrate(result) for name, result in model["results"].items()}
        benchmarks = {name: one for name, one in benchmarks.items() if one is not None}
        if benchmarks:
            known = {"name": model["name"], "weights": model.get("weights") or model["embeddings"],
                     "weights_sha256": model["sha256"], "model_fingerprint": model["model_fingerprint"]}  # fmt: skip
            calibrations.append(known | {"join": join, "benchmarks": benchmarks})
    if not calibrations:
        return None
    path = folder / FILE_NAME
    write_json(path, {"schema": SCHEMA, "date": datetime.date.today().isoformat(), "models": calibrations})
    return path


def calibrate(result: dict[str, Any]) -> dict[str, Any] | None:
    """What one benchmark's result says, JSON-ready; None where nothing beyond the published figures was measured.

    The thresholds are over all pairs of pictures of known age, where ages are known, else over all pairs.
    """
    analysis = result.get("analysis", {})
    by_gap, figures = analysis.get("age_gap"), analysis.get("verification", {}).get("figures")
    if by_gap is not None and by_gap["bins"][ALL]["num_genuine"] and by_gap["bins"][ALL]["num_random_impostor"]:
        counts = by_gap["bins"][ALL]["num_genuine"], by_gap["bins"][ALL]["num_random_impostor"]
        rows = by_gap["common_thresholds"]
        num_of_gap = {gap: by_gap["bins"][gap]["num_genuine"] for gap in GAPS}
    elif figures is not None:
        counts, num_of_gap = (figures["num_genuine"], figures["num_impostor"]), {}
        rows = {rate: _row_of_figures(figures, rate) for rate in COMMON_RATES}
    else:
        return None
    at_far = {
        rate: {
            "threshold": row["threshold"],
            "impostors_allowed": row["impostors_allowed"],
            "tar_percent": row["tar_percent"][ALL],
            "tar_by_age_gap_percent": {gap: row["tar_percent"][gap] for gap in num_of_gap},
        }
        for rate, row in rows.items()
        if row["reason"] is None and row["tar_percent"][ALL] is not None
    }
    return {
        "title": result["title"],
        "drawn": result.get("drawn", False),  # by program: what holds for such faces need not hold for photographs
        "num_genuine": counts[0],
        "num_impostor": counts[1],
        "num_genuine_by_age_gap": num_of_gap,
        "at_far": at_far,
        "left_out": {
            rate: row["reason"] or "too few genuine pairs" for rate, row in rows.items() if rate not in at_far
        },
    }


def _row_of_figures(figures: dict[str, Any], rate: str) -> dict[str, Any]:
    """A row as `common_thresholds` has them, of `verification_figures`."""
    threshold, reason = figures[f"threshold_at_far_{rate}"], figures[f"tar_at_far_{rate}_reason"]
    if reason is None and threshold is None:
        reason = f"at FAR {rate} no genuine pair passes"
    return {
        "threshold": threshold,
        "impostors_allowed": figures[f"impostors_allowed_at_far_{rate}"],
        "tar_percent": {ALL: figures[f"tar_at_far_{rate}_percent"]},
        "reason": reason,
    }


# ------------------------------------------------------------------------------------------------------------ reading


def find_calibration(weights: Path, fingerprint: str, join: str, report: Callable[[str], None]) -> Calibration | None:
    """The calibration beside the weights, or else in results/, of the model of this fingerprint; None without any.

    A file there that is about other models is reported by `report` and ignored.

    Raises:
        UserError: for a file there that can't be read.
    """
    for path in dict.fromkeys((weights.with_name(FILE_NAME), Path("results") / FILE_NAME)):
        if path.is_file():
            models = _read_models(path)
            found = [one for one in models if one.get("model_fingerprint") == fingerprint and one["join"] == join]
            if found:
                return _checked(path, found[0])
            why = (
                "is of an earlier version"
                if _lacks_fingerprints(models)
                else f"is not about {weights} as it is built now"
            )
            report(f"{path} {why}: it is not used; test.py writes a new one")
    return None


def read_calibration(path: Path, fingerprint: str, join: str) -> Calibration:
    """What the file says of the model of this fingerprint, with its views joined so.

    Raises:
        UserError: a file that can't be read, is no calibration, or is about other models or another join.
    """
    models = _read_models(path)
    if _lacks_fingerprints(models):
        raise UserError(
            f"--calibration {path} is of an earlier version, which did not write how its models were built: run "
            "test.py on these weights again."
        )
    of_model = [model for model in models if model.get("model_fingerprint") == fingerprint]
    if not of_model:
        others = ", ".join(str(model.get("weights", "?"))[:80] for model in models[:3])
        raise UserError(
            f"--calibration {path} is about other weights, or about these with another purification unit or "
            f"preprocessing ({others}), not about the model of fingerprint {fingerprint[:12]}...: run test.py on it."
        )
    fitting = [model for model in of_model if model["join"] == join]
    if not fitting:
        raise UserError(
            f"--calibration {path} is about views joined by {str(of_model[0]['join'])[:40]!r}, here they are joined by "
            f"{join!r}: run test.py of this version."
        )
    return _checked(path, fitting[0])


def _read_models(path: Path) -> list[dict[str, Any]]:
    """The models of a file, with a SHA-256 and a join each."""
    if wrong := wrong_file(path, "calibration", ("text",)):
        raise UserError(f"The calibration {path} {wrong[0]}: {wrong[1]}; {MADE_BY}.")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"it has more than {MAX_CHARACTERS:,} characters")
        content = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # the last for brackets in brackets in brackets
        reason = getattr(error, "strerror", None) or f"it is no JSON ({error})"
        raise UserError(f"The calibration {path} can't be read, {reason}: {MADE_BY}.") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else None
        raise UserError(f"{path} is no calibration of schema {SCHEMA} but {str(schema)[:20]}: {MADE_BY}.")
    try:
        models = [(str(model["weights_sha256"]), str(model["join"])) for model in content["models"]]
    except (KeyError, TypeError):
        models = []
    if not models:
        raise _damaged(path)
    return content["models"]


def _lacks_fingerprints(models: list[dict[str, Any]]) -> bool:
    """Whether an earlier version wrote them: by the SHA-256 alone nobody knows which purification unit they had."""
    return not any("model_fingerprint" in model for model in models)


def _checked(path: Path, model: dict[str, Any]) -> Calibration:
    try:
        benchmarks = {str(name): _read_benchmark(str(name), entry) for name, entry in model["benchmarks"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise _damaged(path) from None
    if not benchmarks:
        raise _damaged(path)
    return Calibration(str(path), benchmarks)


def _damaged(path: Path) -> UserError:
    return UserError(f"The calibration {path} is damaged, something is missing or of a wrong kind: {MADE_BY}.")


def _read_benchmark(name: str, entry: dict[str, Any]) -> BenchmarkCalibration:
    """Raises KeyError, TypeError, ValueError for what is not as `calibrate` writes it."""
    num_of_gap = {gap: _count(entry["num_genuine_by_age_gap"][gap]) for gap in entry["num_genuine_by_age_gap"]}
    points = {
        rate: OperatingPoint(
            far=rate,
            threshold=_number(row["threshold"], -1.0, 1.0),
            impostors_allowed=_count(row["impostors_allowed"]),
            tar_percent=_number(row["tar_percent"], 0.0, 100.0),
            tar_by_gap={
                gap: (num_of_gap[gap], None if percent is None else _number(percent, 0.0, 100.0))
                for gap, percent in row["tar_by_age_gap_percent"].items()
            },
        )
        for rate, row in entry["at_far"].items()
        if rate in COMMON_RATES
    }
    left_out = {str(rate): str(why) for rate, why in entry["left_out"].items() if rate in COMMON_RATES}
    counts = _count(entry["num_genuine"]), _count(entry["num_impostor"])
    is_drawn = entry.get("drawn") is True  # earlier versions did not write it
    return BenchmarkCalibration(name, str(entry["title"]), *counts, points, left_out, is_drawn)


def _number(value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError("no number in its range")
    return float(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("no count")
    return value
