"""Flags, argument files, and exit statuses of scripts.

A script's settings are one frozen dataclass; tyro makes the flags from it. Fields declare their bounds (`bounded`) and
whether they name something to read or write (`input_file`, `output_file`, `output_folder`); the class's NEEDS says on
which other flags the effect of a flag depends.
"""

import dataclasses
import errno
import json
import os
import shlex
import signal
import sys
import typing
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import tyro

from meta import UserError
from utils.distributed import DistInfo, gather_lists, leave

Config = TypeVar("Config")
MAX_ARGUMENT_CHARACTERS = 100_000  # of an argument file; what is longer is some other file
CHECK_PATH = "check that path, its permissions, and the free space."


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


def one_of(about: str, choices: Mapping[str, str]) -> Any:
    """The type of a flag that takes one of these names; its help is `about` and what each name stands for."""
    meanings = [f"{name}: {meaning}." for name, meaning in choices.items() if meaning]
    return typing.Annotated[typing.Literal[tuple(choices)], tyro.conf.arg(help=" ".join([about, *meanings]))]


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def output_folder(default: Path | None = None) -> Any:
    """A dataclass field for a folder that the script makes if it doesn't exist."""
    return dataclasses.field(default=default, metadata={"is_folder": True})


def output_file(default: Path | None = None) -> Any:
    """A dataclass field for a file that the script writes."""
    return dataclasses.field(default=default, metadata={"is_folder": False})


def input_file(default: Path | None = None) -> Any:
    """A dataclass field for a file that the script reads, see `check_input_files`."""
    return dataclasses.field(default=default, metadata={"is_input": True})


def parse_config(config_class: type[Config], arguments: Sequence[str] | None = None) -> Config:
    """The settings from the command line, with `@FILE` replaced by the arguments in FILE.

    Raises:
        UserError: what `check_config` finds, or an argument file that can't be read.
        SystemExit: status 2 for flags tyro can't parse, 0 after --help.
    """
    words, sources = [], []  # of each word: the argument file it stands in, None for the command line
    for argument in sys.argv[1:] if arguments is None else arguments:
        expanded = expand_argument_files([argument])
        words += expanded
        sources += [argument[1:] if argument.startswith("@") else None] * len(expanded)
    config = tyro.cli(config_class, args=words)
    _GIVEN[id(config)] = _find_flags(type(config), words, sources)
    weakref.finalize(config, _GIVEN.pop, id(config))
    check_config(config)
    return config


def check_config(config: Any) -> None:
    """Checks bounds, places to write to, and that every flag that was given has an effect.

    Raises:
        UserError: for the first mistake.
    """
    check_bounds(config)
    check_places(config)
    check_needs(config)


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
        if value is None or "multiple_of" not in limits:
            continue
        for number in value if isinstance(value, tuple) else (value,):
            low, high, above = limits.get("low"), limits.get("high"), limits.get("above")
            inside = (low is None or number >= low) and (high is None or number <= high)
            if not inside or (above is not None and not number > above):
                raise UserError(f"{flag(field.name)} {number} is out of range: give a number {_range(limits)}.")
            if limits["multiple_of"] > 1 and number % limits["multiple_of"]:
                raise UserError(f"{flag(field.name)} {number} must be a multiple of {limits['multiple_of']}.")


def check_places(config: Any) -> None:
    """Raises UserError for a folder to make where a file is, a file to write where a folder is, or either in a file."""
    for field in dataclasses.fields(config):
        path, is_folder = getattr(config, field.name), field.metadata.get("is_folder")
        if is_folder is None or path is None:
            continue
        if is_folder and os.path.lexists(path) and not os.path.isdir(path):
            raise UserError(f"{flag(field.name)} {path} is no folder but a file: give the name of a folder.")
        if not is_folder and os.path.isdir(path):
            raise UserError(f"{flag(field.name)} {path} is a folder: give the name of a file.")
        above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if not os.path.isdir(above):
            raise UserError(f"{flag(field.name)} {path} can't be written, for {above} is a file: give another place.")


def check_input_files(config: Any) -> None:
    """Raises UserError for the first `input_file` that isn't there; scripts call it before they begin to work."""
    for field in dataclasses.fields(config):
        path = getattr(config, field.name)
        if "is_input" in field.metadata and path is not None and not os.path.isfile(path):
            raise UserError(f"{flag(field.name)} {path} is no file: check its path.")


def check_ascending(name: str, counts: tuple[int, int]) -> None:
    """Raises UserError where the first of the two numbers of a flag is the larger one."""
    if counts[0] > counts[1]:
        raise UserError(f"{flag(name)} {counts[0]} {counts[1]}: give the smaller number first.")


def flag(field_name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + field_name.replace("_", "-")


def _range(limits: dict) -> str:
    words = {"low": "at least", "above": "above", "high": "at most"}
    return " and ".join(f"{word} {limits[key]}" for key, word in words.items() if limits.get(key) is not None)


# ------------------------------------------------------------------------------------------- flags without an effect

# Which flags were given is no setting: it is kept beside the settings, by their id, for as long as they live. Not by
# the settings themselves, since two command lines with equal settings may have given different flags.
_GIVEN: dict[int, Mapping[str, str | None]] = {}


class With:
    """A flag has an effect only where another one has one of these values, or, without values, where it is set.

    Of a flag that takes several values one is enough. `why` is the reason, where it isn't plain.
    """

    def __init__(self, other: str, *values: object, why: str = ""):
        self.other, self.values, self.why = other, values, why

    def holds(self, config: Any) -> bool:
        value = getattr(config, self.other)
        if not self.values:
            return bool(value)
        return any(one in self.values for one in (value if isinstance(value, tuple) else (value,)))

    def obstacle(self, config: Any) -> str:
        value, default = getattr(config, self.other), type(config).__dataclass_fields__[self.other].default
        is_off = not value and (value == default or value in (None, ()))
        return f"without {self.wish()}" if is_off else f"with {_spelled(self.other, value)}"

    def wish(self) -> str:
        return " ".join([flag(self.other), " or ".join(map(str, self.values))]).strip()


class Without(With):
    """A flag has an effect only where another one is not set."""

    def holds(self, config: Any) -> bool:
        return not super().holds(config)

    def wish(self) -> str:
        return ""  # to leave the flag out is enough


class Either:
    """A flag has an effect where one of several conditions holds."""

    why = ""

    def __init__(self, *conditions: With):
        self.conditions = conditions

    def holds(self, config: Any) -> bool:
        return any(condition.holds(config) for condition in self.conditions)

    def obstacle(self, config: Any) -> str:
        return f"without {self.wish()}"

    def wish(self) -> str:
        return " or ".join(filter(None, (condition.wish() for condition in self.conditions)))


# Field -> the conditions under which its flag has an effect; all of them must hold.
Needs: TypeAlias = Mapping[str, tuple[With | Either, ...]]


def given(config: Any) -> Mapping[str, str | None]:
    """The fields that were set, each with the argument file that set it (None: the command line, or Python).

    For settings from `parse_config`: those that arguments name, even with their default value. For settings made in
    Python: those that differ from the default. None and False, where they are the default, mean "not given".
    """
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    differ = {name: None for name, default in defaults.items() if getattr(config, name) != default}
    found = _GIVEN.get(id(config), differ)
    left_out = {name for name, default in defaults.items() if default is None or default is False} - set(differ)
    return {name: source for name, source in found.items() if name not in left_out}


def check_needs(config: Any) -> None:
    """Finds flags that were given and have no effect because of the others, by the NEEDS of the settings' class.

    Raises:
        UserError: naming all flags with the same reason, and the argument file that gives them.
    """
    needs: Needs = getattr(type(config), "NEEDS", {})
    idle: dict[tuple, list[str]] = {}  # reason -> flags without an effect
    for name, source in given(config).items():
        failed = next((condition for condition in needs.get(name, ()) if not condition.holds(config)), None)
        if failed is not None:
            value = getattr(config, name)
            spelled = _spelled(name, value) if isinstance(value, bool) else flag(name)
            idle.setdefault((source, failed.obstacle(config), failed.why, failed.wish()), []).append(spelled)
    if not idle:
        return
    (source, obstacle, why, wish), flags = next(iter(idle.items()))
    does, them = ("does", "it") if len(flags) == 1 else ("do", "them")
    raise UserError(f"{', '.join(flags)}{f' in {source}' if source else ''} {does} nothing {obstacle}"
                    f"{f', {why}' if why else ''}: leave {them} out{f', or give {wish}' if wish else ''}.")  # fmt: skip


def _spelled(name: str, value: object) -> str:
    if isinstance(value, bool):
        return flag(name) if value else f"--no-{flag(name)[2:]}"
    return " ".join([flag(name), *map(str, value if isinstance(value, tuple) else (value,))])


def _find_flags(config_class: type, words: Sequence[str], sources: Sequence[str | None]) -> dict[str, str | None]:
    """The fields whose flags stand among the words, each with the source of the last one."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    spellings = {}
    for field in dataclasses.fields(config_class):
        aliases = [alias for extra in getattr(hints[field.name], "__metadata__", ())
                   for alias in getattr(extra, "aliases", None) or ()]  # fmt: skip
        spellings |= dict.fromkeys([flag(field.name), f"--no-{flag(field.name)[2:]}", *aliases], field.name)
    found = {}
    for word, source in zip(words, sources, strict=True):
        if word == "--":  # what follows is no flag
            break
        name = word.split("=")[0].replace("_", "-") if word.startswith("--") else word[:2]  # -oFILE is -o FILE
        if name in spellings:
            found.pop(spellings[name], None)
            found[spellings[name]] = source
    return found


# ----------------------------------------------------------------------------------------------------- JSON and text


def compare_settings(config: Any, process: DistInfo, may_differ: Collection[str]) -> None:
    """Compares the settings of all processes: with others they would work apart, or wait for each other for hours.

    Raises:
        UserError: on all processes, naming the first flag that differs and is not in `may_differ`.
    """
    own = {name: value for name, value in as_plain(config).items() if name not in may_differ}
    first, *others = gather_lists([own], process)
    for rank, other in enumerate(others, 1):
        for name, value in first.items():
            if other[name] != value:
                raise UserError(f"{flag(name)} is {value} in process 0 and {other[name]} in process {rank}: start all "
                                f"processes with the same flags.")  # fmt: skip


def as_plain(config: Any) -> dict[str, Any]:
    """The settings as JSON-ready values: paths as strings, tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def printable(text: str) -> str:
    """The text in one line, control characters escaped: a file's name must not control the terminal."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


# ------------------------------------------------------------------------------------------------------- exit statuses


def run_script(main: Callable[[], int | None]) -> None:
    """Runs a script's main function and exits: a user's mistake is one sentence and status 2, Ctrl-C status 130."""
    script = Path(sys.argv[0]).name
    try:
        with warnings.catch_warnings():
            # torch warns where --workers exceeds the cores, which the user has chosen.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            status = main() or 0
        sys.stdout.flush()  # here, where BrokenPipeError is handled, and not at the interpreter's exit
    except UserError as error:
        print(f"{script}: {printable(str(error))}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr)
        status = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of stdout has closed it, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # not about a file of the user's: a bug
        print(f"{script}: {printable(str(error))}: {CHECK_PATH}", file=sys.stderr)
        status = 2
    leave(status)
