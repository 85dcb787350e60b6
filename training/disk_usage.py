"""The files that a run writes, and the room for them on each disk: the table of --dry-run."""

import contextlib
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate
from torch import Tensor

from data.age_cache import bytes_there, cache_bytes, cache_folder
from training.age_feature_cache import age_cache_description, age_cache_place
from training.state import Run
from utils.files import nearest_existing


def size(num_bytes: float) -> str:
    """For people, to two decimals."""
    for unit, length in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= length:
            return f"{num_bytes / length:,.2f} {unit}"
    return f"{num_bytes / 1e3:,.2f} kB"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Indented lines with the first column on the left and the others on the right."""
    sides = ("left", *["right"] * (len(rows[0]) - 1))
    return textwrap.indent(tabulate(rows, tablefmt="plain", colalign=sides, disable_numparse=True), "  ")


def tensor_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class Stored:
    """One kind of file that a run writes."""

    what: str
    folder: Path
    num_bytes: float
    count: int = 1
    there: float = 0  # bytes of such files on disk, from an earlier run: they are replaced or used
    in_place: bool = False  # else a file is written beside the one that it replaces

    @property
    def more(self) -> float:
        """Bytes that it takes at most beside those that exist."""
        return max(self.count * self.num_bytes - self.there, 0 if self.in_place else self.num_bytes)


def age_cache_files(run: Run) -> Stored:
    """The cache of age features, and as much of it as exists."""
    config, index, process = run.config, run.index, run.process
    parent, name = age_cache_place(config, index, process)
    there = 0
    if any(parent.glob(f"{name}_*")):  # else the state of all pictures need not be read
        description = age_cache_description(config, run.stage.model, index, process) | {"num_images": len(index)}
        there = bytes_there(cache_folder(parent, name, description))
    return Stored("age features of both views", parent, cache_bytes(len(index)), there=there, in_place=True)


def files_of(run: Run, trained: list[Tensor], age_features: Stored | None) -> list[Stored]:
    """What the run writes at most."""
    config, model, has_best = run.config, run.stage.model, run.config.best_metric is not None
    has_momentum, has_average = config.momentum > 0, run.stage.ema is not None
    of_others = rows_of_others(run)
    checkpoint = tensor_bytes(list(model.state_dict().values())) + of_others
    checkpoint += tensor_bytes(trained) + of_others if has_momentum else 0
    weights = tensor_bytes(list(run.stage.published_tensors(model).values())) + of_others
    if has_average:
        checkpoint += tensor_bytes(list(run.stage.ema.state_tensors()))
    checkpoints, path = config.run_folder / "checkpoints", config.run_folder / run.stage.weights_file
    published = [path.with_stem(path.stem + ending) for ending in ("", "_ema", "_best")]
    files = [
        Stored("checkpoint (one is written before an older one goes)", checkpoints, checkpoint,
               config.keep_checkpoints + 1 + has_best, bytes_on_disk(checkpoints.glob("*.pth"))),
        Stored("weights in the published layout", config.run_folder, weights, 1 + has_average + has_best,
               bytes_on_disk(published)),
    ]  # fmt: skip
    return files if age_features is None else [*files, age_features]


def rows_of_others(run: Run) -> float:
    """Bytes of the margin head's rows that other processes hold, and write."""
    head = run.stage.model.margin_fc
    return 0 if head is None else tensor_bytes([head.weight]) / len(head.weight) * (head.num_identities - len(head.own))


def bytes_on_disk(paths: Iterable[Path]) -> int:
    """What those of the files that exist take on disk; one with two names (links) counts once."""
    found = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            info = path.stat()
            found[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(found.values())


def disk(files: Sequence[Stored]) -> str:
    """What the run writes, and the room there is on each disk that it goes to."""
    rows = [(stored.what, f"{stored.count} x", size(stored.num_bytes)) for stored in files]
    on_disk: dict[int, list[Stored]] = {}
    for stored in files:
        on_disk.setdefault(disk_of(nearest_existing(stored.folder)), []).append(stored)
    room = []
    for stored_there in on_disk.values():
        places = list(dict.fromkeys(nearest_existing(stored.folder) for stored in stored_there))
        needed, there = (
            sum(values) for values in zip(*((each.more, each.there) for each in stored_there), strict=True)
        )
        beside = f" beside {size(there)} that is there" if there else ""
        free = shutil.disk_usage(places[0]).free
        beyond = ": THERE IS NO ROOM" if needed > free else ""
        room.append(f"  disk of {', '.join(map(str, places))}: {size(needed)} needed at most{beside}, {size(free)} "
                    f"free{beyond}")  # fmt: skip
    return "\n".join(["disk", table(rows), *room])


def disk_of(folder: Path) -> int:
    """A number for the disk that the folder lies on."""
    return folder.stat().st_dev
