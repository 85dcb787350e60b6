"""Ages out of file names: every published data set keeps the age of a face in the name of its picture."""

import os
import re

from meta import MAX_AGE, MIN_AGE, FilenamePattern, UserError


class NoAgeInName(UserError):
    """A picture's name holds no age where its pattern says; some can go on without."""


MAX_DIGITS = 20  # a longer number is none that anybody meant as an age


def parse_age(file_name: str, pattern: FilenamePattern) -> int:
    """Age in years that the base name of `file_name` holds where `pattern` says; its folders are not looked at.

    Raises:
        NoAgeInName: where there is no whole number at that position, or none that is an age.
    """
    parts = re.split(pattern.separators, os.path.basename(file_name))
    text = parts[pattern.position] if pattern.position < len(parts) else ""
    # int() would also take "+39", "3_9" and digits of other scripts, and has a limit of its own on their number.
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise NoAgeInName(f"{file_name!r} has no age in its name: {_what_to_do(pattern)}.")
    age = int(text)
    if not MIN_AGE <= age <= MAX_AGE:
        raise NoAgeInName(
            f"{file_name!r} has the age {age} in its name, outside {MIN_AGE} to {MAX_AGE}: {_what_to_do(pattern)}."
        )
    return age


def find_age(file_name: str, pattern: FilenamePattern) -> int | None:
    """What `parse_age` returns, None where the name holds no age."""
    try:
        return parse_age(file_name, pattern)
    except NoAgeInName:
        return None


def _what_to_do(pattern: FilenamePattern) -> str:
    return f"rename it as the pattern {pattern.name!r} says, for example {pattern.example}, or leave it out"
