"""Checks of sets of pairs: CACD-VS, CALFW, and InsightFace's .bin files."""

from pathlib import Path

import numpy as np

from data.check.findings import OTHER_COUNT, DatasetCheck, Severity
from data.check.folders import named_groups, report_missing
from data.check.image_scan import ImageScan, equal_groups
from data.layout import packed
from data.pairs import PairList, find_pair_list, fold_counts, make_pairs, read_answers, read_pair_list
from data.verification_bins import read_verification_bin
from meta import Benchmark, UserError

# Pairs of InsightFace's verification sets, by the name of the file.
PUBLISHED_BIN_PAIRS = {"lfw": 6000, "agedb_30": 6000, "calfw": 6000, "cplfw": 6000, "cfp_fp": 7000}


def check_pairs(check: DatasetCheck, benchmark: Benchmark) -> None:
    """CACD-VS and CALFW: a folder of pictures and a list."""
    name, folder = benchmark.name, check.root / benchmark.folders[0]
    list_path = find_pair_list(check.root, benchmark)
    if not folder.is_dir():
        if list_path is None:
            report_missing(check, benchmark, folder)
        else:
            archive = packed(folder)
            what = f"there is a list {str(list_path)!r} and no folder {str(folder)!r}"
            check.wrong(name, what, f"get {benchmark.source}" if archive is None else f"unpack {archive!r}")
        return
    pairs = _read_list(check, benchmark, list_path, folder)
    if pairs is None:
        return
    check.ok(name, f"{len(pairs):,} pairs of {len(pairs.images):,} pictures")
    if pairs.missing:
        what = f"{len(pairs.missing):,} pictures, needed by {pairs.num_pairs_dropped:,} pairs, have no file"
        advice = f"get them again from {benchmark.source}; test.py --allow-missing leaves those pairs out"
        check.wrong(name, what, advice, pairs.missing)
    _report_count(check, name, len(pairs) + pairs.num_pairs_dropped, benchmark.num_pairs)
    if list_path is not None:
        _report_folds(check, name, read_answers(list_path), "wrong")
    if benchmark.names_hold_people:
        check.people[name] = {_person(pairs.images.name(i)) for i in range(len(pairs.images))}
    _report_alike(check, name, pairs, check.scan(name, pairs.images))


def check_bin(check: DatasetCheck, path: Path) -> None:
    name, published = path.name, PUBLISHED_BIN_PAIRS.get(path.stem)
    try:
        pairs = read_verification_bin(path)
    except UserError as error:
        check.wrong(name, str(error), "get it again")
        return
    check.ok(name, f"{len(pairs):,} pairs of {len(pairs.images):,} pictures, SHA-256 {pairs.sha256}")
    _report_count(check, name, len(pairs), published)
    _report_folds(check, name, pairs.genuine, "wrong" if published else "note")
    _report_alike(check, name, pairs, check.scan(name, pairs.images))


def _read_list(check: DatasetCheck, benchmark: Benchmark, list_path: Path | None, folder: Path) -> PairList | None:
    try:
        if list_path is not None:
            return read_pair_list(list_path, folder, allow_missing=True)
        if benchmark.pair_rule is not None:
            if benchmark.pair_lists:
                what = "there is no list, so the pairs are made by its rule"
                check.note(benchmark.name, what, "fine: test.py makes the same pairs")
            return make_pairs(benchmark, folder, allow_missing=True)
        place = str(check.root / benchmark.pair_lists[0])
        check.wrong(benchmark.name, f"there is no list {place!r}", f"get {benchmark.source}")
    except UserError as error:
        check.wrong(benchmark.name, str(error))
    return None


def _person(file_name: str) -> str:
    """`Aaron_Eckhart_0001.jpg` -> `Aaron_Eckhart`."""
    return Path(file_name).stem.rpartition("_")[0]


def _report_count(check: DatasetCheck, name: str, num_pairs: int, published: int | None) -> None:
    if published and num_pairs != published:
        check.note(name, f"{num_pairs:,} pairs, the published set has {published:,}", OTHER_COUNT)


def _report_folds(check: DatasetCheck, name: str, genuine: np.ndarray, severity: Severity) -> None:
    """Ten folds are ten equal parts of the list in its order; each has as many genuine as impostor pairs.

    Where one has none of a kind nothing tests such a set, whoever made it: that is wrong, not a note.
    """
    counts = fold_counts(genuine)
    if any(0 in count for count in counts):
        severity = "wrong"
    uneven = [
        f"fold {number}: {same:,} genuine, {other:,} impostor"
        for number, (same, other) in enumerate(counts, 1)
        if same != other
    ]
    if uneven:
        what = f"{len(uneven)} of the ten folds are out of balance"
        advice = "folds are tenths of the list in its order: order the pairs so that each has two equal halves"
        check.report(name, severity, what, advice, uneven)
    elif len({sum(count) for count in counts}) > 1:
        what = f"ten folds in balance, but not of one size: ten does not divide {len(genuine):,} pairs"
        check.note(name, what, "fine where the set is no published one")
    else:
        check.ok(name, f"ten folds of {counts[0][0]:,} genuine and {counts[0][1]:,} impostor pairs")


def _report_alike(check: DatasetCheck, name: str, pairs: PairList, scan: ImageScan) -> None:
    """Pairs of two identical pictures, pairs that come twice, and copies under several names."""
    digests = scan.digests
    same_bytes = (digests[pairs.first] == digests[pairs.second]).all(axis=1) & digests[pairs.first].any(axis=1)
    alike = (pairs.first == pairs.second) | same_bytes
    if (alike & ~pairs.genuine).any():
        what = f"{(alike & ~pairs.genuine).sum():,} impostor pairs are of two identical pictures"
        advice = "one picture can't be of two people: replace or remove the pair"
        check.wrong(name, what, advice, _named(pairs, alike & ~pairs.genuine))
    if (alike & pairs.genuine).any():
        what = f"{(alike & pairs.genuine).sum():,} genuine pairs are of two identical pictures"
        check.note(
            name, what, "anything accepts them: replace them if the set is yours", _named(pairs, alike & pairs.genuine)
        )
    ordered = np.sort(np.stack([pairs.first, pairs.second], axis=1), axis=1)
    _, where, times = np.unique(ordered, axis=0, return_index=True, return_counts=True)
    if (times > 1).any():
        again = np.sort(where[times > 1])
        check.note(
            name, f"{len(again):,} pairs come more than once", "each counts as often as it comes", _named(pairs, again)
        )
    groups = equal_groups(digests)
    if groups:
        what = f"{len(groups):,} pictures lie under several names, byte for byte the same"
        check.note(name, what, "fine where a picture is in several pairs", named_groups(groups, pairs.images.name))


def _named(pairs: PairList, chosen: np.ndarray) -> list[str]:
    """The pairs at these positions, or where this is true."""
    rows = zip(pairs.first[chosen].tolist(), pairs.second[chosen].tolist(), strict=True)
    return [f"{pairs.images.name(a)} {pairs.images.name(b)}" for a, b in rows]
