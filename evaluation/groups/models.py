"""Groups of models, one model a seed: which figures they are compared by, and what stands of them in results.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from evaluation.embeddings.feature_files import holds_features
from evaluation.groups.seeds import summarise
from evaluation.report.reading import branch, figure
from evaluation.scoring import Result, make_rows
from meta import UserError

Group: TypeAlias = tuple[str, tuple[Path, ...]]  # its name, and a file a seed

BEYOND = {  # figures that the main table has not: what they are called, and where a result holds them
    "rank-1 %, mates 20+ years away": ("analysis", "mate_distance", "20+", "rank1_percent"),
    "TAR % at FAR 1e-3, all pairs": ("analysis", "verification", "figures", "tar_at_far_1e-3_percent"),
    "age probe, R2": ("analysis", "leaks", "age_in_identity", "age_r2"),
}


class Figure(NamedTuple):
    """What is measured of a model."""

    setting: str  # as results.json names it
    title: str
    measure: str  # with its unit


def check_groups(groups: Sequence[Group]) -> None:
    """Raises UserError for groups with equal names or that can't be paired; files are not looked into."""
    names = [name for name, _ in groups]
    for name, paths in groups:
        if not name.strip() or Path(name).is_file():
            raise UserError(f"--group {name!r} begins with no name but a file: give --group NAME FILE ... .")
        if names.count(name) > 1:
            raise UserError(f"--group {name} is given twice: give each group a name of its own.")
        if not paths:
            raise UserError(f"--group {name} has no file: give --group {name} FILE ..., a file a seed.")
        if len(paths) != len(groups[0][1]):
            raise UserError(f"--group {name} has {len(paths)} files and --group {names[0]} {len(groups[0][1])}: they "
                            "are paired by order, so give as many of each, in the same order of seeds.")  # fmt: skip


def files_of(groups: Sequence[Group]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The groups' weight files, and their files of embeddings."""
    paths = [path for _, of_group in groups for path in of_group]
    are_features = [holds_features(path) for path in paths]
    weights, features = ([path for path, is_one in zip(paths, are_features, strict=True) if is_one == kind]
                         for kind in (False, True))  # fmt: skip
    return tuple(weights), tuple(features)


def compare_groups(groups: Mapping[str, Sequence[str]], results: Mapping[str, dict[str, Result]]) -> dict[str, Any]:
    """Mean and deviation of each figure over a group's models, and its differences to the first group, pair by pair.

    `groups`: name -> its models in the order of their seeds, `results`: model -> setting -> figures. JSON-ready.
    """
    runs = {name: dict(enumerate(figures_of(results[model]) for model in models)) for name, models in groups.items()}
    figures = list(dict.fromkeys(one for by_seed in runs.values() for of_model in by_seed.values() for one in of_model))
    first = next(iter(groups))
    summary = summarise(runs, first, figures)
    rows = [
        {**one._asdict(), "group": name, "values": [of_model.get(one) for of_model in runs[name].values()],
         **row["spread"], "difference": row.get("difference")}
        for one in figures
        for name in groups
        if (row := summary.get(name, {}).get(one)) is not None
    ]  # fmt: skip
    members = [{"name": name, "models": list(models)} for name, models in groups.items()]
    return {"first": first, "members": members, "figures": rows}


def figures_of(results: Mapping[str, Result]) -> dict[Figure, float]:
    """The figures of one model that groups are compared by: the main table's, views concatenated, and BEYOND."""
    found: dict[Figure, float | None] = {}
    for name, result in results.items():
        for row in make_rows({name: result}):
            value = row.sum if row.concatenate is None else row.concatenate  # InsightFace's accuracy has a sum alone
            found[Figure(name, row.benchmark, row.measure)] = value
        for measure, (*place, key) in BEYOND.items():
            found[Figure(name, result["title"], measure)] = figure(branch(result, *place), key)
    return {one: value for one, value in found.items() if value is not None}
