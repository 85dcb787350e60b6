"""benchmarks/step.py and size.py run, and what they print is of what they say they measured."""

import json
import sys

from scripts import TINY

from benchmarks import size, step


def last_line(out: str) -> dict:
    return json.loads(out.splitlines()[-1])


def test_all_competitors_of_a_step_take_turns(monkeypatch, capsys, tmp_path):
    table = tmp_path / "profile.txt"
    monkeypatch.setattr(sys, "argv", ["step.py", "--backbone", TINY, "--batch", "4", "--classes", "30",
                                      "--rounds", "2", "--profile", str(table)])  # fmt: skip
    step.main()
    reply = last_line(capsys.readouterr().out)
    assert all(reply[name]["ms_an_image"] > 0 for name in ("published", "insightface", "plain", "iefp cached", "iefp"))
    assert reply["iefp_over_plain"]["median"] > 0 and reply["published"]["times_published"]["median"] == 1
    assert "convolution_backward" in table.read_text()


def test_the_step_that_is_timed_learns():
    """What is measured is training: the loss of the batch falls, for plain CosFace too."""
    flags = step.argparse.Namespace(backbone=TINY, batch=6, classes=20, precision="fp32", compile=False,
                                    only=["plain"])  # fmt: skip
    torch = step.torch
    plain = step.make_steps(flags, torch.device("cpu"))["plain"]
    cells = dict(zip(plain.__code__.co_freevars, (cell.cell_contents for cell in plain.__closure__), strict=True))
    stage, batch = cells["plain"].stage, cells["batch"]

    def loss() -> float:
        with torch.no_grad():
            return float(stage.face_recognition(stage.encoder(batch.images), batch.identities))

    before = loss()
    for _ in range(6):
        plain()
    assert loss() < before


def test_sizes_are_measured_and_drawn(monkeypatch, capsys, tmp_path):
    picture = tmp_path / "size.png"
    flags = ["--backbones", TINY, "--batches", "2", "4", "--classes", "20", "30", "--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", ["size.py", *flags, "--plot", str(picture)])
    size.main()
    rows = last_line(capsys.readouterr().out)["rows"]
    assert [(row["classes"], row["batch"]) for row in rows] == [(20, 2), (20, 4), (30, 2), (30, 4)]
    assert all(row["images_per_second"] > 0 for row in rows) and picture.read_bytes()[:4] == b"\x89PNG"
