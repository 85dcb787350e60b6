"""A user's mistake ends in UserError, whose message is one short sentence."""

import re
from collections.abc import Callable

import pytest

from meta import UserError


def refused(function: Callable, *arguments: object, match: str = "", **how: object) -> str:
    """The message with which function(*arguments, **how) refuses; it has to match the regular expression."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **how)
    message = str(caught.value)
    assert re.search(match, message), message
    assert "\n" not in message and len(message) < 2000
    return message
