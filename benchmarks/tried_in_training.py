"""train.py with what was tried against age in training and earned no flag; benchmarks/purification.py measures it.

    python benchmarks/tried_in_training.py --erase-each-epoch folded --purification 0 ... (train.py's flags)
    python benchmarks/tried_in_training.py --prior-bandwidth 8 --age-prior 1 ... (train.py's flags)

Stage identity in one process, and a set whose ages are all known.
"""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from benchmarks.held_out import Features, fit_erasure
from data.loaders import batches, evaluation_loader
from data.transforms import to_network_input
from evaluation.embeddings.extraction import extract
from models.erased_weights import as_layer, folded
from models.erasure import Erasure
from models.iresnet import IResNet
from training.state import Run
from utils.cli import parse_config, run_script


@torch.no_grad()
def set_erasure(encoder: IResNet, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Applies x -> weight x + bias, (512, 512) and (512,), to the features; neither is trained."""
    encoder.set_erasure(True)
    encoder.erasure.requires_grad_(False)
    encoder.erasure.weight.copy_(weight)
    encoder.erasure.bias.copy_(bias)


def fit_now(run: Run) -> Erasure:
    """Fits an erasure to both views of the training pictures, as the encoder now is."""
    model, faces = run.stage.model.eval(), run.index
    loader = batches(evaluation_loader(faces, batch_size=64))
    views = extract(
        model, loader, len(faces), run.process, to_network_input, with_age=False, what=None, with_grey=False
    )
    return fit_erasure(Features(views.original, views.mirror, None, faces.ages, faces.identities))


def before_each_epoch_but_the_first(erase: Callable[[Run], None]) -> None:
    """Makes train.py erase then, and before the last weights are written; a run that resumes does as well."""
    train_epoch, finish = train.train_epoch, train.finish

    def erase_and_train(run, start):
        if start.epoch and not start.batch:
            erase(run)
        return train_epoch(run, start)

    def erase_and_finish(run):
        erase(run)
        finish(run)

    train.train_epoch, train.finish = erase_and_train, erase_and_finish


def fold_each_epoch() -> None:
    """Makes train.py erase age from the weights with which an epoch begins."""

    def erase(run):
        model = run.stage.model
        model.load_state_dict(folded(model.state_dict(), fit_now(run)), strict=False)

    before_each_epoch_but_the_first(erase)


def train_behind_an_erasure() -> None:
    """Makes train.py train behind an erasure that is fitted anew for each epoch."""
    make_model = train.setup.make_model

    def with_identity(*given):
        model = make_model(*given)
        set_erasure(model.backbone_id, torch.eye(model.backbone_id.fc.out_features), torch.zeros(()))
        return model

    def erase(run):
        run.stage.model.backbone_id.set_erasure(False)
        set_erasure(run.stage.model.backbone_id, *as_layer(fit_now(run)))

    train.setup.make_model = with_identity
    before_each_epoch_but_the_first(erase)


ERASING = {"folded": fold_each_epoch, "kept": train_behind_an_erasure}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--erase-each-epoch", choices=ERASING, help="into the weights, or by a layer that stays behind")
    parser.add_argument("--prior-bandwidth", type=float, help="years; of --age-prior")
    tried, flags = parser.parse_known_args()
    if tried.prior_bandwidth and "--age-prior" not in {flag.partition("=")[0] for flag in flags}:
        parser.error("--prior-bandwidth does nothing without --age-prior.")
    if tried.erase_each_epoch:
        ERASING[tried.erase_each_epoch]()
    if tried.prior_bandwidth:
        train.setup.AgePrior = functools.partial(train.setup.AgePrior, bandwidth=tried.prior_bandwidth)
    run_script(lambda: train.train(parse_config(train.TrainConfig, flags)))


if __name__ == "__main__":
    main()
