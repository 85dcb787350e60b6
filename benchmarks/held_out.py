"""What a trained model is worth on people it has never seen: identification, verification, age leak, CLUB."""

from pathlib import Path

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
from models.weights import load_for_embedding
from utils.distributed import DistInfo

FAR = "tar_at_far_1e-3_random_impostors_percent"
CLUB_BATCH = 128


def measure(weights: Path, folder: Path, device: torch.device, club_steps: int) -> dict:
    """All figures of one model on one folder of identities; the file has to hold the frozen age branch too."""
    faces = index_identity_folders(folder, FILENAME_PATTERNS["ms1mv3"])
    model, has_age_branch = load_for_embedding(weights)
    assert has_age_branch, f"{weights} holds no age branch"
    loader = evaluation_loader(faces, batch_size=64)
    extracted = extract(
        model.to(device), batches(loader), len(faces), DistInfo(0, 1, device), to_network_input, what="held out"
    )
    ages, identities = faces.ages.astype(np.int64), faces.identities
    embeddings = join_views(extracted.original, extracted.mirror, "concatenate")
    leak = age_probe(extracted.original, ages, identities)
    gaps = by_age_gap(embeddings, identities, ages)["bins"]
    club = fresh_club(extracted.age_features, extracted.original, identities, club_steps)
    return {
        "rank1_percent": leave_one_out_cmc(embeddings, identities, max_rank=1)["cmc_percent"][0],
        "rank1_20_years_percent": rank1_by_mate_distance(embeddings, identities, ages)["20+"]["rank1_percent"],
        "tar_percent": gaps["all"][FAR],
        "tar_by_gap_percent": {name: row[FAR] for name, row in gaps.items() if name != "all"},
        "age_accuracy_percent": leak["age_group_accuracy_percent"],
        "age_balanced_accuracy_percent": leak["age_group_balanced_accuracy_percent"],
        "age_balanced_accuracy_permuted_percent": leak["permuted_age_group_balanced_accuracy_percent"],
        "age_r2": leak["age_r2"],
        **club,
        # The size of one number before L2 normalisation: the loss of recognition does not see it, CLUB's estimate does.
        "feature_deviation": float(extracted.original.std(axis=0).mean()),
        "num_images": len(faces),
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
