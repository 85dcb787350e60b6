"""Two processes on the CPU (gloo): the same losses and parameters as one with the same whole batch, the same report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scripts import ROOT
from test_train import free_port

STEPS, WHOLE_BATCH = 2, 8

STEP_PROGRAM = f"""
import sys, torch
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from golden_weights import fill
from scripts import load_script
from models.iefp import IEFP
from utils.distributed import average, leave, start_process, stop_process
train = load_script("train")
sync_batchnorm, output = sys.argv[1] == "sync", sys.argv[2]
process = start_process("cpu")
config = train.TrainConfig(learning_rate=0.01, sync_batchnorm=sync_batchnorm)
stage = train.IdentityStage(config, fill(IEFP("iresnet18_quarter", 1, 5).double()), process)
stage.model.train()
share = {WHOLE_BATCH} // process.world_size
own = slice(process.rank * share, (process.rank + 1) * share)
# CLUB's negatives are drawn within a process's share, so the whole permutation is one of two halves.
permutation = torch.tensor([3, 0, 1, 2, 7, 4, 5, 6]) if share == {WHOLE_BATCH} else torch.tensor([3, 0, 1, 2])
losses = []
for step in range({STEPS}):
    draw = torch.Generator().manual_seed(step)
    images = torch.rand({WHOLE_BATCH}, 3, 112, 112, generator=draw, dtype=torch.float64) * 2 - 1
    identities = torch.randint(0, 5, ({WHOLE_BATCH},), generator=draw)
    groups = torch.randint(0, 8, ({WHOLE_BATCH},), generator=draw)
    out = stage.step(train.Batch(images[own], identities[own], groups[own], permutation=permutation))
    losses.append(average(torch.stack([value.double() for value in out.values()]), process))
if process.is_first:
    torch.save({{"losses": torch.stack(losses), "state": dict(stage.model.state_dict())}}, output)
stop_process(process)
leave(0)
"""


def run_program(program: Path, processes: int, *arguments: object) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes,
                "--master-port", free_port()] if processes > 1 else [sys.executable]  # fmt: skip
    command = list(map(str, [*launcher, program, *arguments]))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended


def test_two_processes_with_batchnorm_over_the_whole_batch_train_as_one(tmp_path):
    """In float64 to 1e-9 relative. Without the option each share has its own batch statistics, so they must differ."""
    program = tmp_path / "steps.py"
    program.write_text(STEP_PROGRAM)
    for name, processes, mode in (("one", 1, "sync"), ("two", 2, "sync"), ("apart", 2, "apart")):
        run_program(program, processes, mode, tmp_path / f"{name}.pth")
    one, two, apart = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in ("one", "two", "apart"))
    torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-9, atol=1e-9)
    assert one["state"].keys() == two["state"].keys()
    for key, value in one["state"].items():
        torch.testing.assert_close(two["state"][key], value, rtol=1e-9, atol=1e-11, msg=key)
    assert not torch.allclose(apart["losses"], one["losses"], rtol=1e-3)


def test_two_processes_report_what_one_reports(tiny_faces, weights, tmp_path):
    flags = ["--weights", weights, "--face-dataset", tiny_faces, "--workers", 0, "--device", "cpu",
             "--benchmarks", "fgnet", "calfw"]  # fmt: skip
    for processes, folder in ((1, "one"), (2, "two"), (2, "kept")):  # the last run takes what the second one kept
        kept = ["--cache-folder", tmp_path / f"cache{processes}"]
        ended = run_program(ROOT / "test.py", processes, *flags, *kept, "--output", tmp_path / folder)
        assert ended.stdout.count("| FG-NET") == 4  # told once
    reports = [json.loads((tmp_path / name / "results.json").read_text())["models"] for name in ("one", "two", "kept")]
    one, two, kept = map(leaves, reports)
    assert two == kept and one.keys() == two.keys()
    for place, value in one.items():  # a network's last bits depend on how many pictures share a batch
        assert two[place] == (pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value), place


def leaves(tree: object, place: tuple = ()) -> dict[tuple, object]:
    """Every value of nested lists and dicts by the way to it."""
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if parts is None:
        return {place: tree}
    return {way: value for key, part in parts for way, value in leaves(part, (*place, key)).items()}
