"""Checkpoints of a run: tensors and plain values only, each with a checksum, written beside and renamed into place.

`step_NNNNNNNN.pth` has its SHA-256 in `step_NNNNNNNN.pth.sha256`, in the layout that `sha256sum -c` reads, and so has
`best.pth`. The checksum is in place before the checkpoint, so damage to a checkpoint under its final name is
detected.

Where processes hold rows of their own, each writes them to `step_NNNNNNNN.shard_R_of_W.pth`, with a checksum too. The
main file is renamed into place after all of them and holds their checksums, so a main file implies whole shards.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from meta import UserError
from utils.device_errors import first_line, is_device_error
from utils.distributed import DistInfo, gather_lists
from utils.files import sha256, write_text

FORMAT = 2
BEST = "best.pth"
BELIEVES_LENGTHS = torch.__version__ < (2, 10)  # as in models.weights: then files are mapped


def save_atomically(content: Any, path: Path) -> None:
    """torch.save to a file beside `path`, flushed to disk, then renamed: `path` is never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    try:
        write_flushed(content, beside)
        beside.replace(path)
        flush_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


class BestNotKept(OSError):
    """A checkpoint was written, but it could not be kept as best.pth."""


class NotLoaded(UserError, MemoryError):
    """Memory did not suffice for a checkpoint, which may be good."""


class _Writer:
    """A file that remembers the error of a write, of which torch.save makes a RuntimeError about positions."""

    def __init__(self, file: BinaryIO):
        self.flush, self._write, self.error = file.flush, file.write, None

    def write(self, data: bytes) -> int:
        try:
            return self._write(data)
        except OSError as error:
            self.error = error
            raise


def write_flushed(content: Any, path: Path) -> None:
    """torch.save, flushed to disk.

    Raises:
        OSError: a write failed.
        RuntimeError: a tensor could not be read, as after an error of its GPU.
    """
    with open(path, "wb") as file:
        writer = _Writer(file)
        try:
            torch.save(content, writer)
        except RuntimeError:
            if writer.error is not None:
                raise writer.error from None
            raise
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -------------------------------------------------------------------------------------------------------- writing


def save_checkpoint(folder: Path, step: int, content: dict[str, Any], keep: int, is_best: bool = False) -> Path:
    """Writes `folder/step_NNNNNNNN.pth`, then removes all but the `keep` newest; the best one is kept as best.pth.

    Raises:
        OSError: it could not be written, as on a full disk; what was there before is untouched.
        BestNotKept: it was written, but could not be kept as best.pth, which is still the one before.
    """
    path = folder / f"step_{step:08d}.pth"
    _write_with_checksum({"format": FORMAT, "step": step, **content}, path)
    for older in list_checkpoints(folder)[:-keep]:
        older.unlink()
        checksum_path(older).unlink(missing_ok=True)
    _remove_lone_shards(folder)
    if is_best:
        try:
            keep_as_best(path)
        except OSError as error:
            raise BestNotKept(str(error)) from error
    return path


def save_shard(folder: Path, step: int, rank: int, count: int, rows: dict[str, Tensor]) -> str:
    """Writes the rows of one of `count` processes and returns the file's SHA-256. To be done before save_checkpoint.

    Raises:
        OSError: it could not be written.
    """
    path = shard_path(folder / f"step_{step:08d}.pth", rank, count)
    return _write_with_checksum({"format": FORMAT, "step": step, "rows": rows}, path)


def _write_with_checksum(content: dict[str, Any], path: Path) -> str:
    """Writes a file and its checksum beside their names, flushed, then renames both; returns the checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside, checksum_beside = path.with_name(path.name + ".part"), path.with_name(path.name + ".sha256.part")
    try:
        write_flushed(content, beside)
        digest = sha256(beside)
        checksum_beside.write_text(f"{digest}  {path.name}\n")
        checksum_beside.replace(checksum_path(path))
        beside.replace(path)
        flush_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)
        checksum_beside.unlink(missing_ok=True)
    return digest


def keep_as_best(path: Path) -> None:
    """Links best.pth to the checkpoint, which outlives its first name; copies it where the file system has no links.

    Raises:
        OSError: there is no room for copies; the best one before is untouched.
    """
    best = path.with_name(BEST)
    shards = _shards(path.parent, re.escape(path.stem))
    names = {shard: path.with_name(shard.name.replace(path.stem, best.stem, 1)) for shard in shards} | {path: best}
    checksums = checksum_path(best)
    checksum = checksum_path(path).read_text().replace(path.name, BEST)
    before = checksums.read_text() if checksums.exists() else ""
    besides = []
    try:
        for each, name in names.items():  # first what may need room
            besides.append(_link_beside(each, name))
        write_text(checksums, checksum + before)  # if the power goes now, either file has its checksum there
        for beside, name in zip(besides, names.values(), strict=True):
            beside.replace(name)
    finally:
        for beside in besides:
            beside.unlink(missing_ok=True)
    write_text(checksums, checksum)
    for shard in _shards(path.parent, best.stem):
        if shard not in names.values():  # of a best one with another number of processes
            shard.unlink()


def _link_beside(path: Path, name: Path) -> Path:
    beside = name.with_name(name.name + ".part")
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:
        try:
            shutil.copyfile(path, beside)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
    return beside


def _remove_lone_shards(folder: Path) -> None:
    """Removes shards, whole or half, whose main file is not there: of old checkpoints, and of ones never finished."""
    kept = {path.stem for path in list_checkpoints(folder)}
    for shard in _shards(folder, r"step_\d{8,}", r"(\.sha256)?(\.part)?"):
        if shard.name.split(".")[0] not in kept:
            shard.unlink()


def _shards(folder: Path, stem: str, ending: str = "") -> list[Path]:
    pattern = re.compile(rf"{stem}\.shard_\d+_of_\d+\.pth{ending}")
    return [path for path in folder.iterdir() if pattern.fullmatch(path.name)]


def shard_path(path: Path, rank: int, count: int) -> Path:
    """`step_NNNNNNNN.pth` -> the file of process `rank` of `count` beside it."""
    return path.with_name(f"{path.stem}.shard_{rank}_of_{count}.pth")


def checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


# -------------------------------------------------------------------------------------------------------- reading


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step_\d{8,}\.pth", path.name)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step_")))  # names would put 10^8 before 99999999


def check_all_see(folder: Path, process: DistInfo) -> None:
    """Compares the checkpoints and shards that each process sees.

    Raises:
        UserError: on all processes, when one of them sees others.
    """
    own = {path.name for path in folder.glob("step_*.pth")}
    everyones = gather_lists([own], process)
    for rank, seen in enumerate(everyones):
        missing = sorted(set().union(*everyones) - seen)
        if missing:
            raise UserError(f"{folder / missing[0]} is seen by one process and not by process {rank}: give a "
                            f"--run-folder on storage that all machines share.")  # fmt: skip


def load_newest(
    folder: Path, report: Callable[[str], None], load: Callable[[Path], dict[str, Any]] | None = None
) -> dict[str, Any] | None:
    """The newest good checkpoint in `folder`, None where there is none; damaged ones are reported and passed over.

    `load` reads one instead of load_checkpoint; it raises UserError for one that is not good.

    Raises:
        UserError: there are checkpoints and none of them is good, or memory does not suffice for the newest.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return (load or load_checkpoint)(path)
        except NotLoaded:
            raise
        except UserError as error:
            report(str(error))
    if paths:
        raise UserError(f"none of the {len(paths)} checkpoints in {folder} can be used: remove the folder to start "
                        f"from the beginning, or give another --run-folder.")  # fmt: skip
    return None


def find_best(
    folder: Path, newest: dict[str, Any], metric: str, higher_is_better: bool, report: Callable[[str], None]
) -> float | None:
    """The value of `metric` that best.pth was kept for, None where there is none for this metric.

    best.pth itself holds its value. Where the run was stopped after `newest`, the checkpoint it goes on from, had been
    written as the best and before it was kept as best.pth, that is done now.
    """
    own, best = _best_of(newest, metric), None
    if own is None:
        return None  # best.pth, if there is one, is of another metric or another run
    if (folder / BEST).exists():
        try:
            best = _best_of(load_checkpoint(folder / BEST, mmap=True), metric)
        except UserError as error:
            report(str(error))
    if newest.get("is_best") and (best is None or (own > best if higher_is_better else own < best)):
        try:
            keep_as_best(folder / f"step_{newest['step']:08d}.pth")
        except OSError as error:
            report(f"the checkpoint of step {newest['step']:,} could not be kept as {folder / BEST} ({error}).")
        else:
            best = own
    return best


def _best_of(content: dict[str, Any], metric: str) -> float | None:
    return content["best"] if content["config"].get("best_metric") == metric else None


def differences(model: dict[str, Tensor], saved: dict[str, Tensor]) -> list[str]:
    """How the tensors of a checkpoint differ from those of a model in names and shapes: a few words each."""
    found = [f"{name} is missing there" for name in model if name not in saved]
    found += [f"{name} is not asked for" for name in saved if name not in model]
    shapes = {name: (tuple(model[name].shape), tuple(saved[name].shape)) for name in model if name in saved}
    return found + [f"{name} is {there} there, {here} here" for name, (here, there) in shapes.items() if here != there]


def load_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of one checkpoint, tensors on the CPU; with `mmap` only what is used of it comes into memory.

    Raises:
        UserError: damaged, of another format, or holding more than tensors and plain values.
    """
    try:
        expected = checksum_path(path).read_text().split()[::2]  # of best.pth there may be two lines
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"checkpoint {path} has no readable checksum beside it ({error}): it is not used.") from None
    return _read_checked(path, expected, mmap)


def read_rows(path: Path, shards: dict[str, list], own: range) -> dict[str, Tensor]:
    """The rows `own` of a checkpoint whose rows lie in shards; only files that overlap them are read.

    `shards` is what the checkpoint says of them: how many "rows" each has and its "sha256".

    Raises:
        UserError: a shard is missing, damaged, or none of this checkpoint.
    """
    pieces: dict[str, list[Tensor]] = {}
    count, start = len(shards["rows"]), 0
    for rank in range(count):
        stop = start + shards["rows"][rank]
        low, high = max(start, own.start), min(stop, own.stop)
        if low < high:
            content = _read_checked(shard_path(path, rank, count), shards["sha256"][rank : rank + 1], mmap=True)
            for name, rows in content["rows"].items():
                pieces.setdefault(name, []).append(rows[low - start : high - start])
        start = stop
    return {name: torch.cat(rows) for name, rows in pieces.items()}


def _read_checked(path: Path, expected: list[str], mmap: bool = False) -> dict[str, Any]:
    """The content of a file whose SHA-256 is in `expected`; with `mmap` only what is used of it comes into memory."""
    try:
        found = sha256(path)
    except OSError as error:
        raise UserError(f"checkpoint {path} can't be read ({error}): it is not used.") from None
    if found not in expected:
        raise UserError(f"checkpoint {path} is damaged (its SHA-256 is not the one noted): it is not used.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap or BELIEVES_LENGTHS)
    except Exception as error:
        if is_device_error(error):
            raise NotLoaded(f"checkpoint {path} could not be loaded ({first_line(error)}): make memory free and give "
                            f"the same command again.") from None  # fmt: skip
        # torch raises a dozen kinds for a damaged file; each means the same to the user
        reason = ascii(re.split(r"\.\s|\n", f"{type(error).__name__}: {error}")[0][:200])[
            1:-1
        ]  # what follows is advice to load unsafely
        raise UserError(
            f"checkpoint {path} is none, or holds more than tensors and plain values ({reason}): it is not used."
        ) from None
    # A tensor under "format" could not be compared.
    stamp = content.get("format") if isinstance(content, dict) else None
    if not isinstance(stamp, int) or stamp != FORMAT:
        raise UserError(f"{path} is no checkpoint of this version of the program: it is not used.")
    return content
