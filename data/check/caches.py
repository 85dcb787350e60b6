"""What is cached on disk below the data sets: how much there is, and how to remove it."""

import os
import shlex
import time
from collections.abc import Iterable
from pathlib import Path

from data.age_cache import DATA, cache_bytes, read_description
from data.check.findings import DatasetCheck
from data.index_cache import CACHE_FOLDER
from utils.files import in_bytes

NAME = "caches"


def check_caches(check: DatasetCheck) -> None:
    """Reports each age-feature cache, and all other cached files of a folder together; none of it is wrong."""
    for folder in sorted([*check.root.glob(CACHE_FOLDER), *check.root.glob(f"*/{CACHE_FOLDER}")]):
        age_caches = sorted(path.parent for path in folder.glob(f"*/{DATA}"))
        for cache in age_caches:
            description = read_description(cache)
            of = "damaged" if description is None else f"of {description['num_images']:,} pictures"
            full = "" if description is None else f", {in_bytes(cache_bytes(description['num_images']))} when complete"
            _report(check, f"{cache}: age features {of}", [cache / DATA], f"rm -r {shlex.quote(str(cache))}", full)
        others = sorted(folder.glob("*.np[yz]"))
        if others:
            what = f"{folder}: {len(others):,} files of embeddings and lists of pictures"
            _report(check, what, others, f"rm {shlex.quote(str(folder))}/*.np[yz]")


def _report(check: DatasetCheck, what: str, files: Iterable[Path], command: str, ending: str = "") -> None:
    states = [os.stat(path) for path in files]
    taken = sum(state.st_blocks * 512 for state in states)  # of a file with holes, what the disk gives
    date = time.strftime("%Y-%m-%d", time.localtime(max(state.st_mtime for state in states)))
    check.report(NAME, "ok", f"{what}, {in_bytes(taken)}{ending}, last written {date}", f"can go: {command}")
