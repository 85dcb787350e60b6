"""training/profiling.py: what --profile writes, and what it says where a run ends too soon."""

import gzip
import json

import torch

from training.profiling import STEPS_BEFORE, WARM_UP_STEPS, Profile
from utils.distributed import DistInfo

CPU = torch.device("cpu")
BEFORE = STEPS_BEFORE + WARM_UP_STEPS


def run_steps(profile: Profile, count: int) -> None:
    for number in range(count):
        # What is done before must not be in the table.
        (torch.sin if number < BEFORE else torch.cos)(torch.ones(50))
        profile.step()
    profile.close()


def test_a_trace_and_a_table_of_the_steps_after_the_first_few(tmp_path, capsys):
    run_steps(Profile(3, tmp_path, DistInfo(0, 1, CPU)), BEFORE + 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["profile_operations.txt", "profile_trace.json.gz"]
    table = (tmp_path / "profile_operations.txt").read_text()
    (row,) = [line.split() for line in table.splitlines() if line.strip().startswith("aten::cos")]
    assert row[-1] == "3" and "aten::sin" not in table and table.startswith("3 steps")
    with gzip.open(tmp_path / "profile_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert sum(event["name"] == "aten::cos" for event in events) == 3
    assert capsys.readouterr().out.count("\n") == 1


def test_a_run_that_ends_while_it_is_recorded_is_reported_with_the_steps_it_had(tmp_path, capsys):
    run_steps(Profile(30, tmp_path, DistInfo(0, 1, CPU)), BEFORE + 2)
    assert capsys.readouterr().out.startswith("profile of 2 steps: ")
    assert (tmp_path / "profile_operations.txt").read_text().startswith("2 steps")


def test_a_run_that_ends_before_says_what_it_would_have_taken(tmp_path, capsys):
    run_steps(Profile(3, tmp_path, DistInfo(0, 1, CPU)), 4)
    assert capsys.readouterr().out == f"no profile: --profile 3 needs {BEFORE + 3} steps, and the run ended before\n"
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_records(tmp_path):
    run_steps(Profile(1, tmp_path, DistInfo(1, 2, CPU)), BEFORE + 2)
    assert list(tmp_path.iterdir()) == []
