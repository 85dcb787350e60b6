"""Names in lists and in file names of raw releases."""

import re
from pathlib import PurePosixPath

from data.releases.aligned_folders import Plan
from meta import UserError

NUM_CHARACTERS_SHOWN = 80


def match_name(plan: Plan, pattern: re.Pattern, path: str, example: str) -> re.Match | None:
    """The parts of a picture's name, or None after noting that it is left out."""
    parts = pattern.fullmatch(PurePosixPath(path).name)
    if parts is None:
        plan.left_out.append((path, f"its name is not like {example}"))
    return parts


def is_plain_name(name: str) -> bool:
    """Whether it is the name of a file that stands in a list: no folders, no white space, not hidden."""
    return bool(name) and not name.startswith(".") and not any(c in "/\\\0" or c.isspace() for c in name)


def is_inner_path(path: str) -> bool:
    """Whether it is a name, or a path of folders and a name, that stays below the folder it is looked for in."""
    return all(map(is_plain_name, path.removeprefix("./").split("/")))


def is_whole_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def unexpected_line(where: str, line: str, expected: str) -> UserError:
    return UserError(f"{where}, reads {line.strip()[:NUM_CHARACTERS_SHOWN]!r}: {expected}.")
