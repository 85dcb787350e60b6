"""Content of weight files: archives of torch.save and .safetensors, read as tensors; nothing in them is executed."""

import json
import os
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from meta import UserError

# Beginnings of names that checkpoints of AdaFace and others mention: callbacks, settings.
LIGHTNING = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "argparse.Namespace", "omegaconf.")
MAX_CHARACTERS = 120  # of anything a file says, in an error
MAX_DESCRIPTION = 100_000  # characters of the JSON file beside the weights; train.py writes some 200
MAX_SAFETENSORS_HEADER = 10_000_000  # bytes; iresnet200 with both branches has some 300,000
# torch before 2.10 believes a tensor's length and reads beyond its bytes; a mapped file ends where the file ends.
BELIEVES_LENGTHS = torch.__version__ < (2, 10)


class Ignored:
    """Stands for what PyTorch Lightning keeps beside the weights in its checkpoints: holds nothing, does nothing."""

    def __init__(self, *_: object, **__: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_archive(path: Path) -> Any:
    is_archive = _check_archive(path)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_archive else ()
    ignored = [
        (OrderedDict if name.endswith("Dict") else Ignored, name) for name in names if name.startswith(LIGHTNING)
    ]
    with torch.serialization.safe_globals(ignored):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive and BELIEVES_LENGTHS)


def is_torch_archive(path: str | Path) -> bool:
    """Whether an archive holds what torch.save writes, and isn't one around a weight file; also if it can't be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except Exception:  # zipfile raises half a dozen kinds for a damaged one; opening it will say why
        return True


def read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise UserError(f"{path} needs the package safetensors: pip install safetensors") from None
    with open(path, "rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    if claimed > MAX_SAFETENSORS_HEADER:
        raise ValueError(f"its header claims {claimed:,} bytes, more than {MAX_SAFETENSORS_HEADER:,}")
    with safe_open(path, framework="pt") as file:
        branches = (file.metadata() or {}).get("branches", "null")
        if len(branches) > MAX_DESCRIPTION:
            raise ValueError(f"its description has more than {MAX_DESCRIPTION:,} characters")
        keys = file.keys()
        return {"branches": json.loads(branches), "state_dict": {key: file.get_tensor(key) for key in keys}}


def _check_archive(path: Path) -> bool:
    """Whether it is an archive, and not the format of torch before 1.6.

    Raises:
        ValueError: it unpacks to more than it is, a few megabytes could fill all memory; or it is compressed.
    """
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"  # as torch distinguishes them
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > os.path.getsize(path):
            raise ValueError(f"it unpacks to {unpacked:,} bytes, more than the file has")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, as torch.save never does")
    return is_archive


def reason(error: Exception) -> str:
    """The first words of torch's message, without its advice to read the file unsafely."""
    refused = re.search(r"(?:GLOBAL|forbidden global) (\S+)", str(error))
    if refused:
        return f"it asks for {shown(refused[1])}"
    first = shown(re.split(r"[.\n]", str(error).strip())[0])
    return type(error).__name__ if first in ("", "Weights only load failed") else f"{type(error).__name__}: {first}"


def shown(text: str) -> str:
    """Words of a file for an error: cut short, and without the codes that would move a terminal's cursor."""
    return ascii(text[:MAX_CHARACTERS])[1:-1]
