"""What the benchmark measures ours against is the published method: the same losses, parameters and buffers as ours."""

import torch
from golden_weights import fill
from scripts import SLIM, load_script

from benchmarks.published import InsightFaceLoop, PublishedLoop, published_logits
from models.iefp import IEFP
from models.margin import CosFace
from training.optim import make_precision
from utils.distributed import DistInfo

CPU = torch.device("cpu")


def make_model() -> IEFP:
    return fill(IEFP(SLIM, 1, 7).double())


def make_batch(step: int):
    draw = torch.Generator().manual_seed(step)
    images = torch.rand(6, 3, 112, 112, generator=draw, dtype=torch.float64) * 2 - 1
    return images, torch.randint(0, 7, (6,), generator=draw), torch.tensor([5, 0, 1, 2, 3, 4])


def test_two_passes_of_the_published_loop_are_one_pass_of_ours():
    """In float64 to 1e-9, with BatchNorm's buffers but for those of CLUB, which the published loop moves needlessly."""
    train = load_script("train")
    config = train.TrainConfig(learning_rate=0.01, precision="fp32")
    published = PublishedLoop(make_model(), 0.01, *make_precision(config, CPU))
    ours = train.IdentityStage(config, make_model(), DistInfo(0, 1, CPU))
    ours.model.train()
    for step in range(3):
        images, identities, permutation = make_batch(step)
        theirs = published.step(images, identities, torch.zeros(6, dtype=torch.int64), permutation)
        batch = train.Batch(images, identities, torch.zeros(6, dtype=torch.int64), permutation=permutation)
        losses = ours.step(batch)
        names = ("face_recognition_loss", "mutual_information", "log_likelihood")
        reply = torch.stack([losses[name] for name in names])
        torch.testing.assert_close(reply, torch.tensor(theirs, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    states = published.model.state_dict(), ours.model.state_dict()
    for key, value in states[0].items():
        if not key.endswith("num_batches_tracked") and not (key.startswith("clubmi.") and "running" in key):
            torch.testing.assert_close(states[1][key], value, rtol=1e-9, atol=1e-11, msg=key)


def test_its_one_hot_margin_is_cosface():
    torch.manual_seed(0)
    head, features, labels = CosFace(9).double(), torch.randn(4, 512, dtype=torch.float64), torch.tensor([1, 8, 8, 0])
    logits = published_logits(features, head.weight, labels, head.scale, head.margin)
    torch.testing.assert_close(head(features, labels), logits)


def test_the_insightface_loop_learns_its_batch():
    train = load_script("train")
    loop = InsightFaceLoop(make_model().float(), 0.01, *make_precision(train.TrainConfig(), CPU))
    images, identities, _ = make_batch(0)
    losses = [loop.step(images.float(), identities) for _ in range(8)]
    assert losses[-1] < losses[0]
