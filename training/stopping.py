"""Preemption and Ctrl-C: SIGTERM and SIGINT let the step finish, so that the run can save and leave."""

import os
import signal
import threading
import time

import torch
import torch.distributed as dist

from utils.distributed import DistInfo

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A process that waits for one that died would never see the request: it is ended after this time.
GRACE_SECONDS = 20.0
# `timeout` sends its signal to the process and then to the group that it is in; torchrun passes on what Slurm sends to
# every process anyway: within this time it is one request.
ONE_REQUEST_SECONDS = 2.0


class StopRequest:
    """Notes SIGTERM and SIGINT instead of dying; `status()` is what every process should leave with, or None.

    Another signal, more than ONE_REQUEST_SECONDS after the first, ends the process at once.
    """

    def __init__(self, process: DistInfo):
        self.process, self.owner, self.noted, self.seen = process, os.getpid(), 0, threading.Event()
        self.noted_at = 0.0  # time.monotonic()
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        if process.world_size > 1:
            # Python runs handlers between its own instructions; a byte in a pipe is written even while the main
            # thread waits inside a collective operation.
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            threading.Thread(target=self._end_when_stuck, args=(reader,), daemon=True).start()

    def _note(self, number: int, frame: object) -> None:
        if os.getpid() != self.owner:
            return  # forked from this process with its handlers
        if not self.noted:
            self.noted, self.noted_at = number, time.monotonic()
        elif time.monotonic() - self.noted_at > ONE_REQUEST_SECONDS:
            os._exit(128 + number)

    def _end_when_stuck(self, reader: int) -> None:
        number = 0
        while number not in SIGNALS:  # other signals, such as the end of a data worker, write here too
            number = os.read(reader, 1)[0]
        if not self.seen.wait(GRACE_SECONDS):
            os._exit(128 + number)

    def status(self) -> int | None:
        """128 + the signal when any process was asked to stop; all processes get the same answer at the same step."""
        noted = self.noted
        if self.process.world_size > 1:
            everyones = torch.tensor(noted)
            dist.all_reduce(everyones, dist.ReduceOp.MAX, group=self.process.cpu_group)
            noted = int(everyones)
        if noted:
            self.seen.set()
        return 128 + noted if noted else None

    def restore(self) -> None:
        """Gives the signals back to who had them before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.process.world_size > 1:
            signal.set_wakeup_fd(-1)
