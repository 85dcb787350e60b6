"""Flags, argument files and the way scripts end.

A script's settings are one frozen dataclass; tyro makes the flags from it. Bounds stand in the fields (`bounded`).
"""

import dataclasses
import errno
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from meta import UserError
from utils.distributed import leave

Config = TypeVar("Config")
MAX_ARGUMENT_CHARACTERS = 100_000  # of an argument file; what is longer is some other file


def bounded(
    default: float | tuple | None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    multiple_of: int = 1,
) -> Any:
    """A dataclass field whose value must be >= low, <= high, > above and a multiple (of those that are given)."""
    limits = {"low": low, "high": high, "above": above, "multiple_of": multiple_of}
    return dataclasses.field(default=default, metadata=limits)


def parse_config(config_class: type[Config], arguments: Sequence[str] | None = None) -> Config:
    """The settings from the command line, with `@FILE` replaced by the arguments in FILE.

    Raises:
        UserError: a value out of its bounds, or an argument file that can't be read.
        SystemExit: status 2 for flags tyro can't parse, 0 after --help.
    """
    arguments = expand_argument_files(sys.argv[1:] if arguments is None else arguments)
    config = tyro.cli(config_class, args=arguments)
    check_bounds(config)
    return config


def expand_argument_files(arguments: Sequence[str]) -> list[str]:
    """Replaces each `@FILE` by the words of FILE, where `#` starts a comment; later flags win over earlier ones."""
    expanded: list[str] = []
    for argument in arguments:
        if not argument.startswith("@"):
            expanded.append(argument)
            continue
        path = Path(argument[1:])
        try:
            expanded += shlex.split(read_arguments(path), comments=True)
        except (OSError, ValueError) as error:
            raise UserError(f"argument file {path} can't be read ({error}): give the path of a text file of flags.") \
                from None  # fmt: skip
    return expanded


def read_arguments(path: Path) -> str:
    """The text of an argument file; raises ValueError for what can't be one, OSError for what can't be read."""
    # utf-8-sig: editors on Windows begin with a mark. newline="": a line break inside quotes stays what it is.
    with open(path, encoding="utf-8-sig", newline="") as file:
        text = file.read(MAX_ARGUMENT_CHARACTERS + 1)  # of a device there is no end
    if len(text) > MAX_ARGUMENT_CHARACTERS:
        raise ValueError(f"more than {MAX_ARGUMENT_CHARACTERS:,} characters")
    if "\0" in text:
        raise ValueError("NUL bytes in it")
    return text


def check_bounds(config: Any) -> None:
    """Raises UserError for the first field outside its bounds, naming the flag."""
    for field in dataclasses.fields(config):
        value, limits = getattr(config, field.name), field.metadata
        if value is None or not limits:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            low, high, above = limits.get("low"), limits.get("high"), limits.get("above")
            inside = (low is None or number >= low) and (high is None or number <= high)
            if not inside or (above is not None and not number > above):
                raise UserError(f"{flag(field.name)} {number} is out of range: give a number {_range(limits)}.")
            if limits["multiple_of"] > 1 and number % limits["multiple_of"]:
                raise UserError(f"{flag(field.name)} {number} must be a multiple of {limits['multiple_of']}.")


def flag(field_name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + field_name.replace("_", "-")


def _range(limits: dict) -> str:
    words = {"low": "at least", "above": "above", "high": "at most"}
    return " and ".join(f"{word} {limits[key]}" for key, word in words.items() if limits.get(key) is not None)


def as_plain(config: Any) -> dict[str, Any]:
    """The settings as JSON-ready values: paths as strings, tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def write_json(path: Path, content: Any) -> None:
    """Writes JSON beside `path` and renames it into place, so that a reader never sees half a file."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text beside `path` and renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def printable(text: str) -> str:
    """The text in one line, control characters escaped: the name of a file must not steer a terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def run_script(main: Callable[[], int | None]) -> None:
    """Runs a script's main function: a user's mistake becomes one sentence and status 2, Ctrl-C status 130."""
    script = Path(sys.argv[0]).name
    try:
        status = main() or 0
        sys.stdout.flush()  # here, where a reader that has gone is no error, not at the interpreter's end
    except UserError as error:
        print(f"{script}: {printable(str(error))}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # no file of the user's: a mistake of ours
        print(
            f"{script}: {printable(str(error))}: check that path, who may use it, and the space left.", file=sys.stderr
        )
        status = 2
    leave(status)
