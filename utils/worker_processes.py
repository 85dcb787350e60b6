"""Worker processes that leave SIGTERM and SIGINT to the process that started them, and end with it.

A signal to a whole process group (Ctrl-C in a terminal, `timeout`, Slurm, systemd) reaches the workers as well. If they
ended by it, the main process could not finish what it is doing: torch raises an error when a worker is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # workers that only draw or align begin sooner without torch
    from torch.utils.data import DataLoader

# Without sigtimedwait (macOS) nobody knows who sent a SIGTERM, and that of the parent has to count.
SIGNALS = {signal.SIGINT, signal.SIGTERM} if hasattr(signal, "sigtimedwait") else {signal.SIGINT}
CHECK_SECONDS = 1.0  # a worker looks so often whether its parent is still there


def started(loader: DataLoader) -> Iterator:
    """An iterator over the loader's batches, its worker processes (if it has any) running."""
    loader.worker_init_fn = outlive_signals
    if loader.num_workers and multiprocessing.get_start_method() != "fork":
        resource_tracker.ensure_running()  # its start, which else comes with the first worker's, unblocks signals
    with signals_held():
        return iter(loader)


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of so many processes, which start when work is submitted: to be done with `signals_held`."""
    context = multiprocessing.get_context("spawn")  # safe beside threads and CUDA, and the same on every system
    resource_tracker.ensure_running()  # as above
    with ProcessPoolExecutor(workers, mp_context=context, initializer=outlive_signals) as pool:
        yield pool


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals wait until the block has ended; a process that is started in it begins with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(worker: int = 0) -> None:
    """What a worker, started with `signals_held`, calls first: it ends when its parent asks it to or is gone."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(above: int) -> None:
    # Where a server forks the workers (Python 3.14 on) it is not the parent, and lives as long as they do. Where the
    # parent forks them itself, each worker keeps those before it from seeing that the parent's end of a pipe is closed.
    parent = multiprocessing.parent_process()
    while os.getppid() == above and parent.is_alive():
        if signal.SIGTERM not in SIGNALS:
            threading.Event().wait(CHECK_SECONDS)
            continue
        received = signal.sigtimedwait({signal.SIGTERM}, CHECK_SECONDS)
        if received is not None and received.si_pid == parent.pid:
            break
    os._exit(0)
