"""Checkpoints of a run: tensors and plain values only, each with a checksum, written beside and renamed into place.

`step_NNNNNNNN.pth` has its SHA-256 in `step_NNNNNNNN.pth.sha256`, in the layout that `sha256sum -c` reads, and so has
`best.pth`. The checksum is in place before the checkpoint, so a checkpoint under its final name is whole or can be told
to be damaged.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from meta import UserError
from utils.config import write_text

FORMAT = 2
BEST = "best.pth"


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


def write_flushed(content: Any, path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(content, file)
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
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pth"
    beside, checksum_beside = path.with_name(path.name + ".part"), path.with_name(path.name + ".sha256.part")
    try:
        try:
            write_flushed({"format": FORMAT, "step": step, **content}, beside)
        except RuntimeError as error:  # what torch makes of a failed write
            raise OSError(str(error).splitlines()[0]) from error
        checksum_beside.write_text(f"{sha256(beside)}  {path.name}\n")
        checksum_beside.replace(checksum_path(path))
        beside.replace(path)
        flush_folder(folder)
    finally:
        beside.unlink(missing_ok=True)
        checksum_beside.unlink(missing_ok=True)
    if is_best:
        keep_as_best(path)
    for older in list_checkpoints(folder)[:-keep]:
        older.unlink()
        checksum_path(older).unlink(missing_ok=True)
    return path


def keep_as_best(path: Path) -> None:
    """Gives the checkpoint a second name that outlives its first; no second copy where the file system has links."""
    best = path.with_name(BEST)
    beside, checksums = path.with_name(BEST + ".part"), checksum_path(best)
    checksum = checksum_path(path).read_text().replace(path.name, BEST)
    before = checksums.read_text() if checksums.exists() else ""
    write_text(checksums, checksum + before)  # if the power goes now, either file has its checksum there
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:
        shutil.copyfile(path, beside)
    beside.replace(best)
    write_text(checksums, checksum)


def checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------------- reading


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step_\d{8,}\.pth", path.name)]
    return sorted(found, key=lambda path: int(path.stem.removeprefix("step_")))  # names would put 10^8 before 99999999


def load_newest(folder: Path, report: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest good checkpoint in `folder`, None where there is none; damaged ones are reported and passed over.

    Raises:
        UserError: there are checkpoints and none of them is good.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return load_checkpoint(path)
        except UserError as error:
            report(str(error))
    if paths:
        raise UserError(f"none of the {len(paths)} checkpoints in {folder} can be used: remove the folder to start "
                        f"from the beginning, or give another --run-folder.")  # fmt: skip
    return None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of one checkpoint, tensors on the CPU.

    Raises:
        UserError: damaged, of another format, or holding more than tensors and plain values.
    """
    try:
        expected = checksum_path(path).read_text().split()[::2]  # of best.pth there may be two lines
        found = sha256(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"checkpoint {path} has no readable checksum beside it ({error}): it is not used.") from None
    if found not in expected:
        raise UserError(f"checkpoint {path} is damaged (its SHA-256 is not the one beside it): it is not used.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # torch raises a dozen kinds for a damaged file; each means the same to the user
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
