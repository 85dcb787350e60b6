"""benchmarks/scale.py: its memory model is held to measured steps, its traffic to what the code sends."""

import json
import sys

import pytest
import torch

from benchmarks import scale

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", scale.KINDS)
def test_the_memory_model_is_what_a_step_holds(kind):
    """Within 2 % where weights are the most of it."""
    way, rate = scale.KINDS[kind]
    measured = scale.measured_bytes(scale.Head(way, 4000, 16, CPU, rate))
    model = scale.replicated_memory(4000) if kind == "whole" else scale.memory(4000, 1, rate, 16)
    assert measured == pytest.approx(model, rel=0.02)


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_with_a_large_batch_the_model_is_near_what_a_step_holds(rate):
    measured = scale.measured_bytes(scale.Head("shard", 500, 256, CPU, rate))
    assert measured == pytest.approx(scale.memory(500, 1, rate, 256), rel=0.15)


def test_the_meter_counts_what_is_held_at_once_and_no_storage_twice():
    with scale.PeakBytes() as peak:
        first = torch.zeros(1000)  # 4000 bytes
        first.add_(1).view(10, 100)
        del first
        second = torch.zeros(500)
        second = second + 1  # for a moment there are two of them
    assert peak.peak == 4000 and peak.now == 2000 and len(second) == 500


def test_traffic_is_the_bytes_of_the_collectives_by_ring_algorithms():
    sent, gpus, batch = [], 4, 4 * 8

    class Counting:
        """The collectives of one of 4, its parts as if all had the same; counts what a ring makes each send."""

        world_size = gpus

        def gather(self, rows):
            sent.append(rows.nbytes * (gpus - 1))
            return rows.repeat(gpus, *[1] * (rows.dim() - 1))

        def own_part(self, rows):
            sent.append(rows.nbytes * (gpus - 1) / gpus)
            return rows[: len(rows) // gpus]

        def sum(self, values):
            sent.append(2 * values.nbytes * (gpus - 1) / gpus)
            return values

        maximum = sum

    loss = scale.ShardedMarginLoss(scale.CosFace(20), Counting())
    loss(torch.randn(batch // gpus, 512, requires_grad=True), torch.arange(batch // gpus)).backward()
    assert scale.traffic(20, gpus, batch // gpus)["sharded"] == sum(sent)


def test_a_tiny_run_ends_with_a_line_of_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scale.py", "--classes", "300", "--batch", "8", "--rounds", "2"])
    scale.main()
    reply = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert reply["benchmark"] == "scale" and set(reply["measured"]) == set(scale.KINDS)
    assert [(row["classes"], row["gpus"]) for row in reply["worked_out"]] == [
        (classes, gpus) for classes in scale.CLASSES for gpus in scale.GPUS
    ]
    for row in reply["worked_out"]:
        assert row["sampled_gb"] <= row["sharded_gb"] < row["replicated_gb"]
