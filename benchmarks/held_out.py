"""What a trained model is worth on people it has never seen: identification, verification, age leak, CLUB."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data.faces import index_identity_folders
from data.loaders import batches, evaluation_loader
from data.transforms import to_network_input
from evaluation.age_gap import by_age_gap, rank1_by_mate_distance
from evaluation.embeddings.extraction import extract
from evaluation.identification import leave_one_out_cmc
from evaluation.probes import age_probe, club_estimate
from evaluation.protocols import join_views
from meta import FILENAME_PATTERNS
from models.club import SampledCLUB
from models.erasure import CHILDHOOD_KNOTS, Erasure, ErasureFitter, spline
from models.weights import load_for_embedding
from utils.distributed import DistInfo
from utils.files import written_beside

FAR = "tar_at_far_1e-3_random_impostors_percent"
CLUB_BATCH = 128

# What the tables show: key -> title, decimals. High is good in the first four, low in the two of the age probes.
FIGURES = {
    "rank1_percent": ("rank 1, %", 1),
    "rank1_20_years_percent": ("rank 1, mates 20+ years away, %", 1),
    "tar_percent": ("TAR at FAR 1e-3, %", 1),
    "tar_31_years_percent": ("TAR, 31+ years apart, %", 1),
    "age_r2": ("linear age probe, R2", 3),
    "nonlinear_age_r2": ("non-linear age probe, R2", 3),
}


class Features(NamedTuple):
    """Of N pictures, in the order of their index, before L2 normalisation."""

    original: np.ndarray  # (N, 512) float32
    mirror: np.ndarray  # (N, 512) float32
    of_age: np.ndarray  # (N, 512) float32, of the frozen age branch
    ages: np.ndarray  # (N,) int64
    identities: np.ndarray  # (N,) int64


def features_of(weights: Path, folder: Path, device: torch.device, path: Path, *, with_unit: bool = True) -> Features:
    """A model's features of one folder of identities, kept in `path`; the file has to hold the age branch too.

    Without the purification unit they are the features that enter it.
    """
    if not path.exists():
        faces = index_identity_folders(folder, FILENAME_PATTERNS["ms1mv3"])
        model, has_age_branch = load_for_embedding(weights)
        assert has_age_branch, f"{weights} holds no age branch"
        if not with_unit:
            model.backbone_id.spu = torch.nn.Identity()
        loader = evaluation_loader(faces, batch_size=64)
        extracted = extract(model.to(device), batches(loader), len(faces), DistInfo(0, 1, device), to_network_input,
                            what=folder.name, with_grey=False)  # fmt: skip
        arrays = extracted.original, extracted.mirror, extracted.age_features, faces.ages, faces.identities
        with written_beside(path) as file:
            np.savez(file, **dict(zip(Features._fields, arrays, strict=True)))
    with np.load(path) as kept:
        features = Features(*(kept[name] for name in Features._fields))
    return features._replace(ages=features.ages.astype(np.int64))


def fit_erasure(features: Features, ages: np.ndarray | None = None, views: int = 2, **how: Any) -> Erasure:
    """As purify.py does by default: both views of the pictures, their ages, knots dense among children."""
    fitter = ErasureFitter(features.original.shape[1], **{"basis": spline(CHILDHOOD_KNOTS)} | how)
    for view in (features.original, features.mirror)[:views]:
        fitter.add(view, features.ages if ages is None else ages)
    return fitter.solve()


def erased(features: Features, erasure: Erasure) -> Features:
    views = [erasure(view).astype(np.float32) for view in (features.original, features.mirror)]
    return features._replace(original=views[0], mirror=views[1])


def measure(features: Features, club_steps: int) -> dict:
    """All figures of one model on people it has not seen."""
    ages, identities = features.ages, features.identities
    leak = age_probe(features.original, ages, identities)
    return recognition(features) | {
        "age_accuracy_percent": leak["age_group_accuracy_percent"],
        "age_balanced_accuracy_percent": leak["age_group_balanced_accuracy_percent"],
        "age_balanced_accuracy_permuted_percent": leak["permuted_age_group_balanced_accuracy_percent"],
        "age_r2": leak["age_r2"],
        "nonlinear_age_r2": leak["nonlinear_age_r2"],
        **fresh_club(features.of_age, features.original, identities, club_steps),
        # The size of one number before L2 normalisation: the loss of recognition does not see it, CLUB's estimate does.
        "feature_deviation": float(features.original.std(axis=0).mean()),
        "num_images": len(ages),
    }


def recognition(features: Features) -> dict:
    """Identification and verification, views concatenated."""
    ages, identities = features.ages, features.identities
    embeddings = join_views(features.original, features.mirror, "concatenate")
    gaps = by_age_gap(embeddings, identities, ages)["bins"]
    return {
        "rank1_percent": leave_one_out_cmc(embeddings, identities, max_rank=1)["cmc_percent"][0],
        "rank1_20_years_percent": rank1_by_mate_distance(embeddings, identities, ages)["20+"]["rank1_percent"],
        "tar_percent": gaps["all"][FAR],
        "tar_31_years_percent": gaps["31+"][FAR],
        "tar_by_gap_percent": {name: row[FAR] for name, row in gaps.items() if name != "all"},
    }


def fresh_club(age: np.ndarray, identity: np.ndarray, people: np.ndarray, steps: int, seed: int = 0) -> dict:
    """`club_estimate` on one half of the people by a CLUB fitted to the other half in `steps` steps.

    age, identity (N, 512) before L2 normalisation. Every number is brought to mean 0 and deviation 1 by the first
    half: mutual information does not change by it, while CLUB's variance is bounded and so its estimate would.
    A model that was trained without CLUB can be measured like one that was trained with it.
    """
    in_first = np.isin(people, np.random.default_rng(seed).permutation(np.unique(people))[::2])
    age, identity = (standardised(rows, in_first) for rows in (age, identity))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        estimator = fit_club(torch.from_numpy(age[in_first]), torch.from_numpy(identity[in_first]), steps)

    @torch.inference_mode()
    def mutual_information(age: np.ndarray, identity: np.ndarray, permutation: np.ndarray) -> float:
        arrays = (age.astype(np.float32), identity.astype(np.float32), permutation)
        return float(estimator.mutual_information(*(torch.from_numpy(array) for array in arrays)))

    entry = club_estimate(mutual_information, age[~in_first], identity[~in_first], seed=seed)
    return {"club_nats": entry["club_nats"], "club_shuffled_nats": entry["shuffled_club_nats"]}


def standardised(rows: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """(N, D) float32 with mean 0 and deviation 1 over the rows `fitted` (N,) bool; a constant becomes 0."""
    mean, deviation = rows[fitted].mean(axis=0), rows[fitted].std(axis=0)
    return ((rows - mean) / np.where(deviation > 1e-6, deviation, np.inf)).astype(np.float32)


def fit_club(age: torch.Tensor, identity: torch.Tensor, steps: int) -> SampledCLUB:
    """A CLUB in evaluation mode after so many steps of Adam on random batches of the rows."""
    estimator = SampledCLUB()
    optimiser = torch.optim.Adam(estimator.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(steps):
        rows = torch.randperm(len(age))[:CLUB_BATCH]
        loss = -estimator.log_likelihood(age[rows], identity[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return estimator.eval()
