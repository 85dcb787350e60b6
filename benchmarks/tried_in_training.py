"""train.py with what was tried against age in training and earned no flag; benchmarks/purification.py measures it.

    python benchmarks/tried_in_training.py --erase-each-epoch folded --purification 0 ... (train.py's flags)
    python benchmarks/tried_in_training.py --prior-bandwidth 8 --age-prior 1 ... (train.py's flags)

One process only, and a set whose ages are all known.
"""

import argparse
import functools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from data.loaders import batches, evaluation_loader
from data.transforms import to_network_input
from evaluation.embeddings.extraction import extract
from models.erased_weights import as_layer, folded
from models.erasure import CHILDHOOD_KNOTS, Erasure, ErasureFitter, spline
from models.iresnet import IResNet
from training.state import Run
from utils.cli import parse_config, run_script


def set_erasure(encoder: IResNet, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Applies x -> weight x + bias, (512, 512) and (512,), to the features; neither is trained."""
    encoder.set_erasure(True)
    encoder.erasure.requires_grad_(False)
    encoder.erasure.weight.copy_(weight)
    encoder.erasure.bias.copy_(bias)


@torch.no_grad()
def fit_now(run: Run) -> Erasure:
    """Fits an erasure to both views of the training pictures, as the encoder now is."""
    model, faces = run.stage.model.eval(), run.index
    loader = batches(evaluation_loader(faces, batch_size=64))
    views = extract(
        model, loader, len(faces), run.process, to_network_input, with_age=False, what=None, with_grey=False
    )
    fitter = ErasureFitter(views.original.shape[1], basis=spline(CHILDHOOD_KNOTS))
    for view in (views.original, views.mirror):
        fitter.add(view, faces.ages)
    return fitter.solve()


def fold_each_epoch() -> None:
    """Makes train.py erase age after each epoch from the weights with which the next one begins."""
    train_epoch = train.train_epoch

    def then_fold(run, start):
        state, status = train_epoch(run, start)
        model = run.stage.model
        model.load_state_dict(folded(model.state_dict(), fit_now(run)), strict=False)
        return state, status

    train.train_epoch = then_fold


def train_behind_an_erasure() -> None:
    """Makes train.py train behind an erasure that is fitted anew after each epoch, the last one included."""
    make_model, train_epoch = train.setup.make_model, train.train_epoch

    @torch.no_grad()
    def with_identity(*given):
        model = make_model(*given)
        set_erasure(model.backbone_id, torch.eye(model.backbone_id.fc.out_features), torch.zeros(()))
        return model

    def then_erase(run, start):
        state, status = train_epoch(run, start)
        encoder = run.stage.model.backbone_id
        encoder.set_erasure(False)
        with torch.no_grad():
            set_erasure(encoder, *as_layer(fit_now(run)))
        return state, status

    train.setup.make_model, train.train_epoch = with_identity, then_erase


ERASING = {"folded": fold_each_epoch, "kept": train_behind_an_erasure}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--erase-each-epoch", choices=ERASING, help="into the weights, or by a layer that stays behind")
    parser.add_argument("--prior-bandwidth", type=float, help="years; of --age-prior")
    tried, flags = parser.parse_known_args()
    if tried.erase_each_epoch:
        ERASING[tried.erase_each_epoch]()
    if tried.prior_bandwidth:
        train.setup.AgePrior = functools.partial(train.setup.AgePrior, bandwidth=tried.prior_bandwidth)
    run_script(lambda: train.train(parse_config(train.TrainConfig, flags)))


if __name__ == "__main__":
    main()
