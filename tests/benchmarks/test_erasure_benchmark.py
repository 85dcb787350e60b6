"""benchmarks/erasure_fit.py times the way from cached features to an erasure, and takes its cache away again."""

import json
import sys

from benchmarks import erasure_fit


def test_what_is_timed_finds_the_age_and_erases_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        sys, "argv", ["erasure_fit.py", "--pictures", "3000", "--size", "24", "--folder", str(tmp_path)]
    )
    erasure_fit.main()
    out = capsys.readouterr().out
    reply = json.loads(out.splitlines()[-1])
    assert "features of 3,000 of 3,000 pictures are in" in out  # none was to be computed
    assert reply["num_features"] == 6000 and reply["seconds"] > 0 and reply["peak_mb"] >= reply["before_mb"]
    assert reply["age_r2_before"] > 0.8 and abs(reply["age_r2_after"]) < 0.02
    assert not list(tmp_path.iterdir())
