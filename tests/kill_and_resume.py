"""Kills training runs with SIGKILL and resumes them: the end has to be the run that was never stopped, to the bit.

    python tests/kill_and_resume.py --trials 40 --seed 1
    python tests/kill_and_resume.py --trials 4 --device cuda --precision bf16

A program, so that many kill points can be tried outside the test run; tests/training/test_survival.py tries a few. It
imports torch once and forks a child for every run. Kill points: any moment (a timer), half of a checkpoint written,
before and after each of the renames that put a checkpoint into place. The last line is JSON.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]
import torch  # noqa: E402
from scripts import TINY, load_script  # noqa: E402

import training.checkpoint  # noqa: E402
from data.synthetic.sets import write_training_set  # noqa: E402
from models.iefp import IEFP  # noqa: E402
from models.weights import age_file_tensors  # noqa: E402

train = load_script("train")
KINDS = ("timer", "half a checkpoint", "before a rename", "after a rename")
MOST_KILLS = 4  # of one run


def settings(folder: Path, run: str, device: str = "cpu", precision: str = "auto"):
    return train.TrainConfig(
        train_data=folder / "faces",
        age_weights=folder / "age.pth",
        run_folder=folder / run,
        backbone=TINY,
        batch_size=8,
        epochs=2,
        learning_rate=0.02,
        workers=0,
        device=device,
        precision=precision,
        deterministic=device != "cpu",
        log_every=1,
        save_every=1,
    )


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind: str, count: int, delay: float) -> None:
    """Makes this process kill itself at the chosen point."""
    if kind == "timer":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends it anywhere, as SIGKILL does
        signal.setitimer(signal.ITIMER_REAL, delay)
        return
    calls = [0]

    def at_the_point() -> bool:
        calls[0] += 1
        return calls[0] == count

    if kind == "half a checkpoint":
        write = training.checkpoint.write_flushed

        def write_half(content, path):
            write(content, path)
            if at_the_point():
                os.truncate(path, path.stat().st_size // 2)
                kill_self()

        training.checkpoint.write_flushed = write_half
    else:
        replace = Path.replace

        def kill_around(self, target):
            point = at_the_point()
            if point and kind == "before a rename":
                kill_self()
            result = replace(self, target)
            if point:
                kill_self()
            return result

        Path.replace = kill_around


def run_child(folder: Path, config, plan: tuple[str, int, float] | None) -> bool:
    """Trains in a forked child; whether it came to its end (a killed one did not)."""
    child = os.fork()
    if child == 0:
        output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        if plan is not None:
            arm(*plan)
        os._exit(train.train(config))
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGALRM):
        return False
    assert os.waitstatus_to_exitcode(status) == 0, (folder / "output.txt").read_text()[-3000:]
    return True


def same_end(folder: Path, run: str) -> bool:
    """Whether a run has the weights and the logged losses of the one that was never stopped."""
    ends = [torch.load(folder / name / "iefp.pth", weights_only=True) for name in ("whole", run)]
    same = all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    logs = []
    for name in ("whole", run):
        events = map(json.loads, (folder / name / "log.jsonl").read_text().splitlines())
        logs.append([(e["step"], e["face_recognition_loss"]) for e in events if e["event"] == "train"])
    return same and logs[0] == logs[1]


def resumed_steps(folder: Path, run: str) -> list[int]:
    """The steps of the checkpoints that the run's starts went on from; 0 is the beginning."""
    events = map(json.loads, (folder / run / "log.jsonl").read_text().splitlines())
    return [event["resumed_step"] for event in events if event["event"] == "start"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10, help="runs to be killed, each up to four times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    flags = parser.parse_args()
    torch.set_num_threads(1)  # no thread may exist when a child is forked
    draw = random.Random(flags.seed)
    kills, lost, resumed = dict.fromkeys(KINDS, 0), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_training_set(folder / "faces", 3, 8, seed=0, progress=False)
        torch.manual_seed(5)
        torch.save(age_file_tensors(IEFP(TINY, 1, None)), folder / "age.pth")
        began = time.monotonic()
        run_child(folder, settings(folder, "whole", flags.device, flags.precision), None)
        seconds = time.monotonic() - began
        for trial in range(flags.trials):
            run = f"trial_{trial}"
            config = settings(folder, run, flags.device, flags.precision)
            for attempt in range(MOST_KILLS + 1):
                kind = KINDS[(trial + attempt) % len(KINDS)]
                plan = (kind, draw.randint(1, 6), draw.uniform(0.02, 1.0) * seconds)
                if run_child(folder, config, plan if attempt < MOST_KILLS else None):
                    break
                kills[kind] += 1
            lost += not same_end(folder, run)
            resumed += sum(step > 0 for step in resumed_steps(folder, run))
            shutil.rmtree(folder / run)
        assert "could not be written" not in (folder / "output.txt").read_text()
    print(json.dumps({"runs": flags.trials, "kills": kills, "resumed_from_a_checkpoint": resumed, "lost": lost}))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
