"""The dataset check of `prepare.py check`: what is wrong with data sets and weight files, and what to do.

It changes nothing. A scaled-down set has other counts than the published one; that is a note and not wrong.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from data.check.caches import NAME as CACHES
from data.check.caches import check_caches
from data.check.findings import DatasetCheck, Finding, ReadWeights
from data.check.folders import check_identity_benchmark, check_probe_gallery, check_training_set
from data.check.image_scan import shared
from data.check.pairs import check_bin, check_pairs
from data.layout import no_such_folder
from data.verification_bins import find_verification_bins
from meta import BENCHMARKS, TRAINING_SETS, WEIGHT_FILES, UserError, WeightFile
from utils.files import Progress, no_progress, sha256
from utils.wrong_files import wrong_file

BENCHMARK_CHECKS = {
    "leave_one_out": check_identity_benchmark,
    "probe_gallery": check_probe_gallery,
    "ten_fold_verification": check_pairs,
}


def checked_names() -> tuple[str, ...]:
    """The names of all that can be checked, without .bin files."""
    return (*TRAINING_SETS, *BENCHMARKS, *(f"{name}_weights" for name in WEIGHT_FILES), CACHES)


def check(
    root: str | Path,
    names: Sequence[str] = (),
    *,
    weights_root: str | Path = ".",
    quick: bool = False,
    workers: int = 0,
    progress: Progress = no_progress,
    read_weights: ReadWeights | None = None,
) -> list[Finding]:
    """Findings on the sets `names` below `root` (face_dataset) and the weight files below `weights_root`.

    Without names all that is known is looked for, and what is not there is "missing"; a set that was named and is not
    there is "wrong". `quick` reads every picture's header and doesn't decode it. `workers` processes read pictures.

    Raises:
        UserError: `root` is no folder, or a name is not known.
    """
    if not os.path.isdir(root):
        raise UserError(no_such_folder(root, "data sets", "make it or give another one"))
    checks = _checks(Path(root))
    unknown = [name for name in names if name not in checks]
    if unknown:
        raise UserError(f"{unknown[0]!r} is nothing that can be checked: give some of {', '.join(checks)}.")
    checked = DatasetCheck(Path(root), Path(weights_root), quick, workers, progress, read_weights)
    for name in dict.fromkeys(names or checks):
        checks[name](checked)
    if CACHES in names and not any(found.name == CACHES for found in checked.findings):
        checked.ok(CACHES, f"nothing is kept below {root}")
    _compare_with_training(checked)
    if names:
        return [
            replace(found, severity="wrong") if found.severity == "missing" else found for found in checked.findings
        ]
    return checked.findings


def _checks(root: Path) -> dict[str, Callable[[DatasetCheck], None]]:
    """All that can be checked, by the name under which it is reported."""
    checks: dict[str, Callable[[DatasetCheck], None]] = {}
    for name, training in TRAINING_SETS.items():
        checks[name] = partial(check_training_set, training=training)
    for name, benchmark in BENCHMARKS.items():
        checks[name] = partial(BENCHMARK_CHECKS[benchmark.protocol], benchmark=benchmark)
    for path in find_verification_bins(root):
        checks[path.name] = partial(check_bin, path=path)
    for name, weights in WEIGHT_FILES.items():
        checks[f"{name}_weights"] = partial(_check_weights, name=f"{name}_weights", weights=weights)
    checks[CACHES] = check_caches
    return checks


# -------------------------------------------------------------------------------------- training set and benchmarks


def _compare_with_training(checked: DatasetCheck) -> None:
    """People and pictures of benchmarks that a network may have seen in training."""
    for training in TRAINING_SETS:
        for name in dict.fromkeys([*checked.people, *checked.pictures]):
            if name not in TRAINING_SETS:
                _report_same_names(checked, training, name)
                _report_same_pictures(checked, training, name)


def _report_same_names(checked: DatasetCheck, training: str, name: str) -> None:
    same = sorted(checked.people.get(training, set()) & checked.people.get(name, set()))
    named = [person for person in same if any(map(str.isalpha, person))]
    numbers = [person for person in same if person not in named]
    if named:
        what = f"{len(named):,} identities have the same name in {training}"
        advice = "a network must not be tested on people it was trained on: remove them from the training set"
        checked.wrong(name, what, advice, named)
    if numbers:
        what = f"{len(numbers):,} identities have the same number in {training}"
        advice = (
            "each set numbers its people in its own way, so these are most likely others; only if both were made from "
            "one source, remove them from the training set"
        )
        checked.note(name, what, advice, numbers)


def _report_same_pictures(checked: DatasetCheck, training: str, name: str) -> None:
    leaked = []
    for trained, of_training in checked.pictures.get(training, []):
        for tested, of_test in checked.pictures.get(name, []):
            rows = shared(of_training.digests, of_test.digests)
            leaked += [f"{trained.name(a)} = {tested.name(b)}" for a, b in rows]
    if leaked:
        what = f"{len(leaked):,} pictures are in {training} too, byte for byte"
        advice = "a network must not be tested on people it was trained on: remove them from the training set"
        checked.wrong(name, what, advice, leaked)


# --------------------------------------------------------------------------------------------------------- weights


def _check_weights(checked: DatasetCheck, name: str, weights: WeightFile) -> None:
    path = checked.weights_root / weights.path
    shown, again = repr(str(path)), f"get {weights.source} again"
    if not path.is_file():
        checked.missing(name, f"there is no {shown} ({weights.holds})", f"get {weights.source}, or train one")
        return
    try:
        with open(path, "rb") as file:
            start = file.read(2)
        if wrong := wrong_file(path, "weight file", ("ZIP archive",)):
            checked.wrong(name, f"{shown} {wrong[0]}", f"{wrong[1]}; it is at {weights.source}")
        elif start not in (b"PK", b"\x80\x02"):  # torch's archive, and its format before version 1.6
            checked.wrong(name, f"{shown} is no weight file", again)
        else:
            holds = f"{checked.read_weights(path)}, " if checked.read_weights else ""
            checked.ok(name, f"{holds}{path.stat().st_size:,} bytes, SHA-256 {sha256(path)}")
    except UserError as error:
        checked.wrong(name, str(error), again)
    except OSError as error:
        checked.wrong(name, f"{shown} can't be read, {error.strerror}", "check who may read it")
