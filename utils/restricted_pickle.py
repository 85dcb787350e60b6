"""Pickles read as a file format: lists, tuples, bytes, text, numbers and flat numpy arrays. Nothing in them is run.

The pickle module calls any function that a file names, and believes any length that it claims. This reader knows the
few instructions that plain content needs and calls nothing: numpy's own functions are names that it understands.
Every length is checked against the file before anything is allocated, and nothing grows faster than the file.
"""

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

MAX_INSTRUCTIONS = 2_000_000  # a picture takes 2 of them, or about 20 as a numpy array; 7,000 pairs are 14,000 pictures
MAX_DIMENSIONS = 64  # numpy's own limit
MAX_NUMBER_LENGTH = 40  # characters of a number written as text
DTYPES = {"u1": "uint8", "|u1": "uint8", "b1": "bool", "|b1": "bool"}


class Array:
    """A numpy array of bytes or of truth values, or one such value: its `shape` is () then."""

    dtype = ""  # "uint8" or "bool"; empty as long as the file has made the array and not filled it
    shape: tuple[int, ...] = ()
    content = b""  # one byte a value


class _Dtype:
    def __init__(self, name: str):
        self.name = name


class _Known(Enum):
    """The names that a file may mention."""

    ENCODE = "_codecs.encode"
    NDARRAY = "numpy.ndarray"
    DTYPE = "numpy.dtype"
    RECONSTRUCT = "numpy.core.multiarray._reconstruct"
    SCALAR = "numpy.core.multiarray.scalar"
    FROMBUFFER = "numpy.core.numeric._frombuffer"


def read_pickle(content: bytes) -> object:
    """What a pickle of protocol 0 to 5 holds: None, bool, int, str, bytes, `Array`, and lists and tuples of these.

    Strings of Python 2 and bytearrays come as bytes. A list may hold itself or one thing many times: don't walk all of
    it. What follows the end of the pickle is not looked at.

    Raises:
        ValueError: for anything else that is in it, with the place in the file.
    """
    machine = _Machine(content)
    try:
        return machine.run()
    except IndexError:
        reason = "it takes more than was put there"
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"at byte {machine.start:,}: {reason}")


class _Machine:
    """A stack of values, the places on it that are marked, and the values that the file keeps to take again."""

    def __init__(self, content: bytes):
        self.content, self.position, self.start = content, 0, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.kept: dict[int, Any] = {}
        self.encoded_bytes = 0

    def run(self) -> object:
        for _ in range(MAX_INSTRUCTIONS):
            self.start = self.position
            code = self.take(1)
            if code == b".":
                return self.stack.pop()
            if code not in INSTRUCTIONS:
                raise ValueError(f"the pickle instruction {code!r} has no place in plain content")
            INSTRUCTIONS[code](self)
        raise ValueError(f"it has more than {MAX_INSTRUCTIONS:,} instructions")

    # ------------------------------------------------------------------------------------- arguments in the file

    def take(self, length: int) -> bytes:
        if not 0 <= length <= len(self.content) - self.position:
            left = len(self.content) - self.position
            raise ValueError(f"{length:,} bytes are claimed, {left:,} are left in the file")
        self.position += length
        return self.content[self.position - length : self.position]

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> bytes:
        end = self.content.find(b"\n", self.position)
        if end < 0:
            raise ValueError("a line does not end")
        return self.take(end + 1 - self.position)[:-1]

    def number_line(self) -> int:
        text = self.line()
        if len(text) > MAX_NUMBER_LENGTH:
            raise ValueError(f"a number has {len(text):,} digits")
        return int(text.removesuffix(b"L"))  # Python 2's long

    # ----------------------------------------------------------------------------------------------- instructions

    def put(self, value: object) -> None:
        self.stack.append(value)

    def number_or_truth(self) -> None:
        truth = {b"00\n": False, b"01\n": True}.get(self.content[self.position : self.position + 3])
        value = self.number_line()
        self.put(value if truth is None else truth)

    def text_line(self) -> None:
        """A string of Python 2, as its repr."""
        text = self.line()
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
            raise ValueError("a string is not in quotes")
        self.put(text[1:-1].decode("unicode_escape").encode("latin-1"))

    def since_mark(self) -> list:
        height = self.marks.pop()
        values = self.stack[height:]
        del self.stack[height:]
        return values

    def last(self, count: int) -> tuple:
        if len(self.stack) < count:
            raise IndexError
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def extend(self, values: list | tuple) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError(f"something is added to a {type(self.stack[-1]).__name__}, which is no list")
        self.stack[-1].extend(values)

    def keep(self, key: int) -> None:
        self.kept[key] = self.stack[-1]

    def take_again(self, key: int) -> None:
        if key not in self.kept:
            raise ValueError("it takes again what was not kept")
        self.put(self.kept[key])

    def name(self, module: object, name: object) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name is no text")
        full = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # numpy 2 moved them
        if full not in {known.value for known in _Known}:
            raise ValueError(f"it asks for {full[:80]!r}, which has no place in plain content")
        self.put(_Known(full))

    def call(self) -> None:
        function, arguments = self.last(2)
        if not isinstance(function, _Known) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no function")
        match function, arguments:
            case _Known.ENCODE, (str() as text, "latin1"):  # how Python 3 spells bytes in protocols of Python 2
                self.encoded_bytes += len(text)
                if self.encoded_bytes > len(self.content):  # one text may be kept and encoded a million times
                    raise ValueError("it makes more bytes than the file has")
                self.put(text.encode("latin-1"))
            case _Known.DTYPE, (str() | bytes() as name, *_):
                self.put(_Dtype(_dtype_name(name)))
            case _Known.RECONSTRUCT, (_Known.NDARRAY, *_):
                self.put(Array())
            case _Known.FROMBUFFER, (bytes() as content, _Dtype() as dtype, tuple() as shape, "C" | "F"):
                self.put(_filled(Array(), dtype, shape, content))
            case _Known.SCALAR, (_Dtype() as dtype, bytes() as content):
                self.put(_filled(Array(), dtype, (), content))
            case _:
                raise ValueError(f"it calls {function.value} with other arguments than numpy and Python write")

    def fill(self) -> None:
        state = self.stack.pop()
        match self.stack[-1], state:
            case _Dtype(), tuple():  # byte order and fields, which types of one byte have not
                pass
            case Array() as array, (_, tuple() as shape, _Dtype() as dtype, _, bytes() as content):
                _filled(array, dtype, shape, content)
            case _:
                raise ValueError("it fills something that is no numpy array of bytes")


def _dtype_name(name: str | bytes) -> str:
    text = name.decode("latin-1") if isinstance(name, bytes) else name
    if text not in DTYPES:
        raise ValueError(f"a numpy array is of the type {text[:20]!r}, only uint8 and bool are expected")
    return DTYPES[text]


def _filled(array: Array, dtype: _Dtype, shape: tuple, content: bytes) -> Array:
    are_lengths = len(shape) <= MAX_DIMENSIONS and all(isinstance(length, int) and length >= 0 for length in shape)
    if not are_lengths or math.prod(shape) != len(content):
        raise ValueError("the shape of a numpy array does not fit its content")
    array.dtype, array.shape, array.content = dtype.name, shape, content
    return array


def _utf8(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


INSTRUCTIONS: dict[bytes, Callable[[_Machine], None]] = {
    # Protocol and frames: nothing here needs them.
    b"\x80": lambda m: m.take(1) and None,
    b"\x95": lambda m: m.take(8) and None,
    # Lists and tuples.
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"]": lambda m: m.put([]),
    b"l": lambda m: m.put(m.since_mark()),
    b"a": lambda m: m.extend(m.last(1)),
    b"e": lambda m: m.extend(m.since_mark()),
    b")": lambda m: m.put(()),
    b"t": lambda m: m.put(tuple(m.since_mark())),
    b"\x85": lambda m: m.put(m.last(1)),
    b"\x86": lambda m: m.put(m.last(2)),
    b"\x87": lambda m: m.put(m.last(3)),
    # Numbers and truth values.
    b"N": lambda m: m.put(None),
    b"\x88": lambda m: m.put(True),
    b"\x89": lambda m: m.put(False),
    b"I": _Machine.number_or_truth,
    b"L": lambda m: m.put(m.number_line()),
    b"K": lambda m: m.put(m.number(1)),
    b"M": lambda m: m.put(m.number(2)),
    b"J": lambda m: m.put(m.number(4, signed=True)),
    b"\x8a": lambda m: m.put(m.number(m.number(1), signed=True)),
    # Strings of Python 2, bytes, bytearrays.
    b"S": _Machine.text_line,
    b"T": lambda m: m.put(m.take(m.number(4, signed=True))),
    b"U": lambda m: m.put(m.take(m.number(1))),
    b"C": lambda m: m.put(m.take(m.number(1))),
    b"B": lambda m: m.put(m.take(m.number(4))),
    b"\x8e": lambda m: m.put(m.take(m.number(8))),
    b"\x96": lambda m: m.put(m.take(m.number(8))),
    # Text.
    b"V": lambda m: m.put(m.line().decode("raw_unicode_escape")),
    b"\x8c": lambda m: m.put(_utf8(m.take(m.number(1)))),
    b"X": lambda m: m.put(_utf8(m.take(m.number(4)))),
    b"\x8d": lambda m: m.put(_utf8(m.take(m.number(8)))),
    # What is kept to be taken again.
    b"p": lambda m: m.keep(m.number_line()),
    b"q": lambda m: m.keep(m.number(1)),
    b"r": lambda m: m.keep(m.number(4)),
    b"\x94": lambda m: m.keep(len(m.kept)),
    b"g": lambda m: m.take_again(m.number_line()),
    b"h": lambda m: m.take_again(m.number(1)),
    b"j": lambda m: m.take_again(m.number(4)),
    # Names, and what they make.
    b"c": lambda m: m.name(_utf8(m.line()), _utf8(m.line())),
    b"\x93": lambda m: m.name(*m.last(2)),
    b"R": _Machine.call,
    b"b": _Machine.fill,
}
