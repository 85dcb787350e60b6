"""A set of pairs in a plan: its pictures, and its list as data.pairs reads it."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from data.faces import is_image_name
from data.finding import find_pictures
from data.pairs import Pair
from data.releases.aligned_folders import Plan, PointFinder
from meta import Benchmark, UserError


def benchmark_places(benchmark: Benchmark) -> tuple[str, str]:
    """(folder of pictures, pair list) below the benchmark's own folder."""
    top = PurePosixPath(benchmark.unpacked_into)
    return tuple(str(PurePosixPath(path).relative_to(top)) for path in (benchmark.folders[0], benchmark.pair_lists[0]))


def add_pairs(
    plan: Plan, pictures: Path, pairs: list[Pair], folder: str, list_name: str, find_points: PointFinder | None
) -> None:
    """The pictures that the pairs name, each once, and the list; a name in it may lack its extension.

    Folders before a name have to be those of its picture; in the new list all names stand without.
    """
    by_name, by_stem = _pictures_by_name(pictures)
    new_names: dict[str, str] = {}
    found: set[str] = set()
    for name in dict.fromkeys(name for pair in pairs for name in (pair.name_a, pair.name_b)):
        folders, _, base = name.rpartition("/")
        stem, suffix = os.path.splitext(base) if is_image_name(base) else (base, "")
        path = by_name.get(base.lower()) or by_stem.get(stem.lower())
        if path is not None and not _lies_in(folders, pictures / path):
            path = None
        if path is None:
            new_names[name] = f"{name.removesuffix(suffix)}{suffix or '.jpg'}"
            plan.left_out.append((name, "in the pair list, but no picture has this name"))
        else:
            new_names[name] = stem + (suffix or PurePosixPath(path).suffix)
            if path not in found:
                plan.add(pictures / path, path, [f"{folder}/{new_names[name]}"], find_points)
            found.add(path)
    plan.lists[list_name] = pair_lines(Pair(new_names[a], new_names[b], genuine) for a, b, genuine in pairs)
    if len(found) < len(by_name):
        plan.notes.append(f"{len(by_name) - len(found):,} pictures of the release are in no pair and are not taken")


def pair_lines(pairs: Iterable[Pair]) -> str:
    """The text of a pair list, as data.pairs reads it."""
    return "".join(f"{a} {b} {int(genuine)}\n" for a, b, genuine in pairs)


def _lies_in(folders: str, picture: Path) -> bool:
    """Whether these are the last of the folders that the picture lies in."""
    return f"/{picture.parent.absolute().as_posix()}".lower().endswith(f"/{folders}".lower()) if folders else True


def _pictures_by_name(pictures: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Paths below `pictures` by base name, and by base name without extension, both in lower case."""
    by_name: dict[str, str] = {}
    by_stem: dict[str, str] = {}
    for path in find_pictures(pictures):
        name = PurePosixPath(path).name.lower()
        if (other := by_name.setdefault(name, path)) != path:
            raise UserError(f"{other!r} and {path!r} below {str(pictures)!r} have one name, and the pair list could "
                            "mean either: give the folder of one of them.")  # fmt: skip
        by_stem.setdefault(PurePosixPath(name).stem, path)
    return by_name, by_stem
