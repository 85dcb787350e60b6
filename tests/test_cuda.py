"""What only a GPU can show: the same figures as on a CPU, no waiting inside a step, 16 bits, NCCL, restarts.

Without a GPU all of it is skipped.
"""

import contextlib
import copy
import json
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from golden_weights import fill
from scripts import ROOT, load_script

from models.iefp import IEFP
from models.iresnet import IResNet
from models.margin import CosFace, MarginLoss
from models.sharded_margin import ShardedMarginLoss
from training.data_parallel import Collectives
from training.optim import RowwiseSGD
from utils.distributed import DistInfo

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
train = load_script("train")
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
NUM_IDENTITIES, BATCH_SIZE = 37, 16


def make_stage(device: torch.device, dtype: torch.dtype = torch.float32, process: DistInfo | None = None, **changed):
    config = train.TrainConfig(**({"learning_rate": 0.01, "precision": "fp32"} | changed))
    model = fill(IEFP("iresnet18_quarter", 1, NUM_IDENTITIES).to(dtype))
    model = model.to(device, memory_format=torch.channels_last)
    stage = train.IdentityStage(config, model, process or DistInfo(0, 1, device))
    stage.model.train()
    return stage


def make_batch(number: int, device: torch.device, dtype: torch.dtype = torch.float32, cached: bool = False):
    draw = torch.Generator().manual_seed(number)
    images = torch.rand(BATCH_SIZE, 3, 112, 112, generator=draw, dtype=dtype) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    identities = torch.randint(0, NUM_IDENTITIES, (BATCH_SIZE,), generator=draw)
    groups = torch.randint(-1, 8, (BATCH_SIZE,), generator=draw)
    permutation = torch.randperm(BATCH_SIZE // 2, generator=draw).repeat(2)  # of negatives, also in two parts
    age = torch.randn(BATCH_SIZE, 512, generator=draw, dtype=dtype).to(device) if cached else None
    images, identities, groups, permutation = (
        each.to(device, non_blocking=True) for each in (images, identities, groups, permutation)
    )
    return train.Batch(images, identities, groups, permutation=permutation, age_features=age, step=number)


def run_steps(stage, count: int = 3, dtype: torch.dtype = torch.float32, device: torch.device = CUDA):
    """(count, losses) on the CPU in float64."""
    reply = [stage.step(make_batch(number, device, dtype)) for number in range(count)]
    return torch.stack(
        [torch.stack([each[name].double() for name in stage.logged_metrics(stage.config)]) for each in reply]
    ).cpu()


def same_state(a: torch.nn.Module, b: torch.nn.Module, **tolerance) -> None:
    states = a.state_dict(), b.state_dict()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key].cpu(), value.cpu(), **tolerance, msg=lambda m, key=key: f"{key}: {m}")


# ------------------------------------------------------------------------------------------------------- one step


@pytest.mark.parametrize("disentangle", ["iefp", "grl"])
def test_in_float64_a_gpu_trains_as_a_cpu(disentangle):
    critic = None if disentangle == "iefp" else disentangle
    stages = []
    for device in (CPU, CUDA):
        config = train.TrainConfig(learning_rate=0.01, precision="fp32", disentangle=disentangle)
        model = fill(IEFP("iresnet18_quarter", 1, NUM_IDENTITIES, critic=critic).double())
        stages.append(train.IdentityStage(config, model.to(device), DistInfo(0, 1, device)))
        stages[-1].model.train()
    losses = [run_steps(stage, 3, torch.float64, device) for stage, device in zip(stages, (CPU, CUDA), strict=True)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-9)
    same_state(stages[0].model, stages[1].model, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.03), ("fp16", 0.005)])
def test_16_bits_lose_what_16_bits_lose(precision, tolerance):
    """The first step's losses against fp32, relative; weights stay fp32 and finite over the steps."""
    exact, short = run_steps(make_stage(CUDA), 1), make_stage(CUDA, precision=precision)
    losses = run_steps(short, 4)
    torch.testing.assert_close(losses[:1, :3], exact[:, :3], rtol=tolerance, atol=tolerance)
    assert losses.isfinite().all()
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in short.model.parameters())


@pytest.mark.parametrize("changed", [{}, {"accumulation": 2}, {"ema_decay": 0.9}, {"club_steps": 3}])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_no_step_waits_for_the_gpu(precision, changed):
    stage = make_stage(CUDA, precision=precision, **changed)
    batches = [make_batch(number, CUDA, cached=True) for number in range(4)]
    stage.step(batches[0])  # what is made once may wait
    torch.cuda.synchronize()
    with waiting_is_an_error():
        for batch in batches[1:]:
            stage.step(batch)
            if stage.ema is not None:
                stage.ema.update()


@contextlib.contextmanager
def waiting_is_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_watch_sees_waiting():
    value = torch.ones(3, device=CUDA)
    with waiting_is_an_error(), pytest.raises(RuntimeError, match="synchroniz"):
        value.sum().item()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_translated_encoders_give_what_plain_ones_give(precision, capfd, monkeypatch):
    """Losses of the first steps, without the small differences of large ones; no word of a translation that failed."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain, translated = (make_stage(CUDA, precision=precision, compile=flag) for flag in (False, True))
    tolerance = 1e-3 if precision == "fp32" else 0.05
    reply, expected = run_steps(translated, 2)[:, :3], run_steps(plain, 2)[:, :3]
    torch.testing.assert_close(reply, expected, rtol=tolerance, atol=tolerance)
    assert "--compile" not in capfd.readouterr().err


# --------------------------------------------------------------------------------------------------- margin heads


def head_and_inputs(device: torch.device):
    torch.manual_seed(4)
    head = CosFace(NUM_IDENTITIES).double()
    features = torch.randn(BATCH_SIZE, 512, dtype=torch.float64)
    labels = torch.randint(0, NUM_IDENTITIES, (BATCH_SIZE,))
    return head.to(device), features.to(device).requires_grad_(), labels.to(device)


def test_both_losses_of_a_head_are_those_of_the_cpu():
    """Whole and as one shard: value and gradients, in float64."""
    reply = []
    for device in (CPU, CUDA):
        for kind in (MarginLoss, lambda head: ShardedMarginLoss(head, Collectives(DistInfo(0, 1, CPU)))):
            head, features, labels = head_and_inputs(device)
            loss = kind(head)(features, labels)
            loss.backward()
            reply.append([each.detach().cpu() for each in (loss, features.grad, head.weight.grad)])
    for other in reply[1:]:
        torch.testing.assert_close(other, reply[0], rtol=1e-10, atol=1e-12)


def test_a_sample_is_drawn_on_the_gpu_and_only_its_rows_move():
    head, features, labels = head_and_inputs(CUDA)
    before, collectives = head.weight.detach().clone(), Collectives(DistInfo(0, 1, CUDA))
    loss = ShardedMarginLoss(head, collectives, rate=0.6, seed=3)
    kept = loss.sample(labels, 5)
    assert kept.equal(loss.sample(labels, 5)) and not kept.equal(loss.sample(labels, 6))
    assert set(labels.tolist()) <= set(kept.tolist())
    assert len(kept) == max(round(0.6 * NUM_IDENTITIES), len(labels.unique()))
    optimiser = RowwiseSGD([head.weight], lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    loss(features, labels, 5).backward()
    optimiser.step()
    moved = (head.weight.detach() != before).any(dim=1).nonzero().squeeze(1)
    assert moved.equal(kept)


# ----------------------------------------------------------------------------------------------------------- NCCL


@pytest.fixture
def group_of_one():
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=CUDA)
    yield DistInfo(0, 1, CUDA)
    dist.destroy_process_group()


def test_every_exchange_of_sharded_identities_runs_by_nccl(group_of_one):
    collectives, rows = Collectives(group_of_one), torch.randn(6, 512, device=CUDA)
    collectives.is_alone = False
    for exchange in (collectives.gather, collectives.own_part, collectives.sum, collectives.maximum):
        result = exchange(rows)
        assert result.equal(rows) and result.data_ptr() != rows.data_ptr()


def test_sharded_identities_by_nccl_train_as_alone(group_of_one):
    losses = []
    for alone in (True, False):
        stage = make_stage(CUDA, torch.float64, sharded_classes=True)
        stage.face_recognition.collectives.is_alone = alone
        losses.append(run_steps(stage, 3, torch.float64))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changed", [{}, {"accumulation": 2}, {"sync_batchnorm": True}])
def test_gradients_by_nccl_train_as_alone(group_of_one, changed):
    """In fp16, so that the loss scale is part of it; sync_batchnorm in float64, which it can do."""
    settings = {"precision": "fp32" if "sync_batchnorm" in changed else "fp16", **changed}
    dtype = torch.float64 if settings["precision"] == "fp32" else torch.float32
    alone = make_stage(CUDA, dtype, **settings)
    joined = make_stage(CUDA, dtype, process=DistInfo(0, 2, CUDA), **settings)  # its group has one member
    assert isinstance(joined.encoder, torch.nn.parallel.DistributedDataParallel)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-2
    torch.testing.assert_close(run_steps(joined, 3, dtype), run_steps(alone, 3, dtype), rtol=tolerance, atol=tolerance)


def test_a_loss_scale_of_shards_leaves_out_a_step_that_overflows():
    stage = make_stage(CUDA, precision="fp16", sharded_classes=True)
    stage.step(make_batch(0, CUDA))
    before, scale = copy.deepcopy(stage.model.state_dict()), stage.scaler.get_scale()
    stage.scaler._scale.fill_(1e38)
    stage.step(make_batch(1, CUDA))
    assert stage.scaler.get_scale() == pytest.approx(5e37) and scale < 1e38
    for name in ("backbone_id.conv1.weight", "margin_fc.weight"):
        assert stage.model.state_dict()[name].equal(before[name])


# -------------------------------------------------------------------------------------------------------- scripts

ON_GPU = ("--device", "cuda", "--epochs", 2, "--backbone", "iresnet18_quarter")


@pytest.mark.parametrize(
    ("precision", "more"), [("bf16", ()), ("fp16", ("--sharded-classes", "--class-sampling-rate", 0.5))]
)
def test_a_run_with_parts_profile_and_average(train_identity, tmp_path, precision, more):
    outcome = train_identity(tmp_path / "run", *ON_GPU, "--precision", precision, "--accumulation", 2, "--ema-decay",
                             0.9, "--profile", 1, "--age-cache", "ahead", "--epochs", 3, *more)  # fmt: skip
    assert outcome.status == 0, outcome.out + outcome.err
    assert "CUDA time total" in (tmp_path / "run" / "profile_operations.txt").read_text()
    events = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    losses = [event["face_recognition_loss"] for event in events if event["event"] == "train"]
    assert len(losses) == 9 and losses[-1] < losses[0]


def test_a_dry_run_reports_settings_and_memory_of_the_gpu(train_identity, tmp_path):
    """Within a tenth of what the same run takes when it trains."""
    outcome = train_identity(tmp_path / "run", *ON_GPU, "--dry-run")
    assert outcome.status == 0 and re.search(r"--precision +auto -> bf16", outcome.out), outcome.out + outcome.err
    shown = re.search(r"peak of tensors on the GPU: ([\d.]+) (MB|GB); cuda:0 has ", outcome.out)
    torch.cuda.reset_peak_memory_stats()
    assert train_identity(tmp_path / "run", *ON_GPU, "--epochs", 1).status == 0
    peak = float(shown[1]) * {"MB": 1e6, "GB": 1e9}[shown[2]]
    assert peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.1)


def test_killed_runs_end_as_if_never_stopped_in_bf16():
    command = [sys.executable, str(ROOT / "tests" / "kill_and_resume.py"), "--trials", "2", "--device", "cuda",
               "--precision", "bf16"]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    reply = json.loads(ended.stdout.splitlines()[-1])
    assert reply["lost"] == 0 and reply["resumed_from_a_checkpoint"] >= 1


def test_embeddings_of_a_gpu_are_those_of_a_cpu(monkeypatch):
    """fp32 without TF32: to 1e-4 of vectors of length 1."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = fill(IResNet("iresnet18_quarter", 1)).eval()
    images = make_batch(0, CPU).images
    with torch.no_grad():
        here = torch.nn.functional.normalize(model(images))
        there = torch.nn.functional.normalize(model.to(CUDA)(images.to(CUDA))).cpu()
    torch.testing.assert_close(there, here, rtol=0, atol=1e-4)


def test_benchmarks_are_the_same_on_both(run_main, tiny_faces, weights, tmp_path, monkeypatch):
    """Scores differ in their last digits, ranks and accuracies do not."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    reply = []
    for device in ("cpu", "cuda"):
        folder = tmp_path / device
        outcome = run_main("test", "--weights", weights, "--face-dataset", tiny_faces, "--device", device,
                           "--output", folder, "--workers", 0, "--no-analysis")  # fmt: skip
        assert outcome.status == 0, outcome.out + outcome.err
        (model,) = json.loads((folder / "results.json").read_text())["models"]
        results = model["results"]
        fgnet, cacd_vs = results["fgnet"]["leave_one_out"], results["cacd_vs"]["verification"]
        reply.append([each[join]["rank1_percent" if each is fgnet else "accuracy_percent"]
                     for each in (fgnet, cacd_vs) for join in ("concatenate", "add")])  # fmt: skip
    assert reply[0] == reply[1]
