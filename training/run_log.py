"""The log of a run: JSON lines, curves for TensorBoard and Weights & Biases; mean losses, bad images, time left."""

import json
import math
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from meta import UserError
from utils.distributed import DistInfo, average, gather_lists
from utils.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS_OF_SPEED = 500  # whose speed the time left is computed from
RUN_ID_FILE = "wandb_id.txt"


def import_wandb() -> Any:
    """The package; raises UserError where it is not installed."""
    try:
        import wandb
    except ImportError:
        raise UserError("--wandb needs the package of Weights & Biases: pip install wandb.") from None
    return wandb


class Tracker:
    """One run at Weights & Biases, which is resumed under the id in the run folder.

    Values carry the training step as `step`: their own count can't go back to a checkpoint.

    Raises:
        UserError: the package is missing, or the service can't be reached or refuses the login.
    """

    def __init__(self, project: str, folder: Path, config: dict[str, Any]):
        wandb = import_wandb()
        path = folder / RUN_ID_FILE
        if not path.exists():
            write_text(path, uuid.uuid4().hex[:12] + "\n")
        run_id = path.read_text(encoding="utf-8").strip()
        try:
            self.run = wandb.init(
                project=project, id=run_id, resume="allow", name=folder.name, dir=str(folder), config=config
            )
        except wandb.errors.Error as error:
            raise UserError(f"--wandb {project} can't be started ({str(error).splitlines()[0]}): log in by "
                            f"`wandb login`, or set WANDB_MODE=offline.") from None  # fmt: skip
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log({"step": step} | values)

    def close(self) -> None:
        self.run.finish()


class RunLog:
    """Writes `log.jsonl` and TensorBoard files into `folder`; writes nothing when `enabled` is False (other ranks).

    What a run logged after the checkpoint at `resumed_step` and before it was stopped is taken out: it comes again.
    A `tracker` gets the values that TensorBoard gets.
    """

    def __init__(self, folder: Path, enabled: bool = True, resumed_step: int = 0, tracker: Tracker | None = None):
        self.file, self.board, self.tracker = None, None, tracker
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "log.jsonl"
            if path.exists():
                drop_lines_after(path, resumed_step)
            self.file = open(path, "a", buffering=1)  # a line is on disk as soon as it is written
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step + 1)

    def event(self, kind: str, step: int | None = None, **values: Any) -> None:
        """One JSON line; numbers also become TensorBoard curves when a step is given."""
        if self.file is None:
            return
        line = {"event": kind, "time": round(time.time(), 3)} | ({} if step is None else {"step": step}) | values
        self.file.write(json.dumps(line) + "\n")
        if step is not None:
            curves = {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
            for name, value in curves.items():
                self.board.add_scalar(name, value, step)
            if self.tracker is not None and curves:
                self.tracker.log(curves, step)

    def figure(self, name: str, draw: "Callable[[], Figure]", step: int) -> None:
        """A picture for TensorBoard, drawn only where it is wanted."""
        if self.board is not None:
            self.board.add_figure(name, draw(), step)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.board.close()
        if self.tracker is not None:
            self.tracker.close()


def open_log(folder: Path, process: DistInfo, resumed_step: int, project: str | None, config: dict) -> RunLog:
    """The first process's log of the run; `project` is that of --wandb, which gets `config` too."""
    tracker = Tracker(project, folder, config) if project is not None and process.is_first else None
    return RunLog(folder, process.is_first, resumed_step, tracker)


def drop_lines_after(path: Path, step: int) -> None:
    """Rewrites a log without events of later steps, and without a last line that was cut off in the middle."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("step", 0) <= step:
            kept.append(line + "\n")
    beside = path.with_name(path.name + ".part")
    beside.write_text("".join(kept))
    beside.replace(path)


NEVER = -1  # no step


class Meter:
    """Means of the losses since the last reading, and the first step at which one was not finite.

    All of it stays on the device until read, so that no step waits for the device.
    """

    def __init__(self, process: DistInfo):
        self.process, self.last_line, self.names = process, "", []
        self.first_bad = torch.full((), NEVER, dtype=torch.int64, device=process.device)
        self._restart()

    def _restart(self) -> None:
        self.sums, self.num_steps, self.num_images, self.began = None, 0, 0, time.perf_counter()

    def add(self, step: int, losses: dict[str, Tensor], num_images: int) -> None:
        """Counts one step: its losses (scalars) and this process's images."""
        values = torch.stack([value.float() for value in losses.values()])
        finite = torch.isfinite(values)
        is_first = (self.first_bad == NEVER) & ~finite.all()
        self.bad_values = torch.where(is_first, values, self.bad_values) if self.names else values
        self.first_bad = torch.where(is_first, step, self.first_bad)
        self.sums = values if self.sums is None else self.sums + values
        self.names, self.num_steps, self.num_images = list(losses), self.num_steps + 1, self.num_images + num_images

    def first_bad_step(self) -> tuple[int, dict[str, float]] | None:
        """The first step of this process with a loss that is no finite number, and the losses that were not."""
        step = int(self.first_bad)
        if step == NEVER:
            return None
        named = zip(self.names, self.bad_values.tolist(), strict=True)
        return step, {name: value for name, value in named if not math.isfinite(value)}

    def leave_out_time(self) -> None:
        """Begins to count time anew, after a reading: what was done since was no training."""
        self.began = time.perf_counter()

    def read(self) -> dict[str, float]:
        """Means over steps and processes, and the images a second of all processes."""
        values = average(self.sums / self.num_steps, self.process).tolist()
        means = {name: round(value, 6) for name, value in zip(self.names, values, strict=True)}
        seconds = time.perf_counter() - self.began
        means["images_per_second"] = round(self.num_images * self.process.world_size / seconds, 1)
        self.last_line = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        self._restart()
        return means


class BadImages:
    """Pictures that training went on without: counted over all processes and runs, and listed in `path`."""

    def __init__(self, path: Path, num_images: int, max_share: float, process: DistInfo):
        self.path, self.num_images, self.max_share, self.process = path, num_images, max_share, process
        self.new: list[str] = []
        self.known = set(path.read_text().splitlines()) if path.exists() else set()

    def add(self, failures: Iterable[str]) -> None:
        """Notes this process's failures, a sentence each that names the file."""
        self.new += failures

    def check(self) -> None:
        """Lists the new ones; every process has to call it at the same step.

        Raises:
            UserError: more than the given share of the images is bad.
        """
        fresh = sorted(set(gather_lists([one_line(failure) for failure in self.new], self.process)) - self.known)
        self.new = []
        if fresh:
            self.known |= set(fresh)
            if self.process.is_first:
                with open(self.path, "a") as file:
                    file.writelines(failure + "\n" for failure in fresh)
                print(f"{len(fresh)} more images can't be read, {len(self.known)} so far: {self.path}", file=sys.stderr)
        if len(self.known) > self.max_share * self.num_images:
            raise UserError(
                f"{len(self.known)} of {self.num_images} images can't be read, more than --max-bad-share "
                f"{self.max_share}: see {self.path}, repair or remove them, or raise --max-bad-share."
            )


def one_line(text: str) -> str:
    return " ".join(text.split())


class TimeLeft:
    """How long a run will still take at the speed of its last steps, pauses between them included.

    `total` counts the steps of the whole run, from its beginning. The first step of a start, which also starts workers
    and compiles networks, counts only as long as there is no other.
    """

    def __init__(self, total: int):
        self.total, self.past_first = total, False
        self.moments: deque[tuple[int, float]] = deque(maxlen=STEPS_OF_SPEED + 1)

    def add(self, done: int) -> None:
        """Notes that so many of the run's steps are done by now; the first time before any of this start's."""
        if len(self.moments) == 2 and not self.past_first:
            self.moments.popleft()
            self.past_first = True
        self.moments.append((done, time.monotonic()))

    def seconds(self) -> float:
        """Seconds left; not a number before the first step."""
        (first, began), (last, now) = self.moments[0], self.moments[-1]
        return math.nan if last == first else (now - began) / (last - first) * (self.total - last)

    def __str__(self) -> str:
        """In words; nothing where there is no speed yet, or no step left."""
        seconds = self.seconds()
        return f"{duration(seconds)} left" if seconds > 0 else ""


def duration(seconds: float) -> str:
    """Rounded for people: `35 s`, `12 min`, `3 h 05 min`, `2 d 7 h`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
