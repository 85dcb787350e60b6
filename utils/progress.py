"""Progress of long work: a bar on a terminal, a plain line every 20 seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 20.0  # where there is no terminal


def progress(
    items: Iterable[Item],
    total: int,
    what: str,
    start: int = 0,
    *,
    enabled: bool = True,
    silent_below: float = 0.0,
    note: Callable[[], str] | None = None,
) -> Iterator[Item]:
    """Passes `items` on, with a bar on a terminal and a plain line now and then elsewhere.

    Work of fewer seconds than `silent_below` prints no line. `note()` is appended to each line.
    """
    if not enabled:
        yield from items
    elif sys.stderr.isatty():
        bar = tqdm(items, total=total, initial=start, desc=what, dynamic_ncols=True)
        for item in bar:
            yield item
            if note:
                bar.set_postfix_str(note(), refresh=False)
    else:
        printed = began = time.monotonic()
        for count, item in enumerate(items, start + 1):
            yield item
            now = time.monotonic()
            if (count == total and now - began >= silent_below) or now - printed >= SECONDS_BETWEEN_LINES:
                printed = now
                ending = f", {note()}" if note and note() else ""
                print(f"{what}: {count}/{total} ({now - began:.0f} s){ending}", file=sys.stderr, flush=True)


def counted(batches: Iterable, num_images: int, what: str, enabled: bool = True, silent_below: float = 0.0) -> Iterable:
    """Passes the batches on, with progress counted in batches of the first one's size."""
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        return ()
    total = -(-num_images // len(first.images))

    def again():
        yield first
        yield from iterator

    return progress(again(), total, what, enabled=enabled, silent_below=silent_below)
