"""Competitors take turns in one process; the median ratio is reported with its spread."""

import os
import platform
import statistics
import time
from collections.abc import Callable

import torch


def machine(device: torch.device) -> dict[str, str | int]:
    """What a figure depends on: processor, threads or GPU, versions."""
    entry = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads(),
            "cores": os.cpu_count(), "processor": processor_name()}  # fmt: skip
    if device.type == "cuda":
        entry |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return entry


def processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    steps: dict[str, Callable[[], None]], device: torch.device, rounds: int, warm_up: int, steps_a_turn: int,
    *, clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds a step of each competitor in each round; in every round each has its turn, in an order that moves on."""
    for step in steps.values():
        for _ in range(warm_up):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            wait(device)
            began = clock()
            for _ in range(steps_a_turn):
                steps[name]()
            wait(device)
            seconds[name].append((clock() - began) / steps_a_turn)
    return seconds


def ratios(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times faster, round by round: median, and the range of the middle half."""
    each = sorted(a / b for a, b in zip(slow, fast, strict=True))
    low, _, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
    return {"median": round(statistics.median(each), 3), "low": round(low, 3), "high": round(high, 3)}
