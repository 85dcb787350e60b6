"""The published evaluation as we read it, written plainly: what ours is measured against.

FG-NET: a Python loop over probes, and within it over mates, that copies the whole gallery of each. Pair lists: ten
folds, and in each a Python loop over 201 thresholds with passes over all its pairs. That both give the same figures as
ours is what `tests/benchmarks/test_published_evaluation.py` says.
Source: the published protocols (Xie et al., TIFS 2022, section IV), in our words.
"""

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

NUM_FOLDS, NUM_THRESHOLDS = 10, 201
TIE = 1e-12  # cosines closer than this are equal up to rounding


# ------------------------------------------------------------------------------------------------------------- FG-NET


def leave_one_out(embeddings: Tensor, identities: Tensor) -> float:
    """Rank-1 percent of `embeddings` (N,D), L2-normalised, and `identities` (N,): each probe has a gallery copied."""
    hits = 0
    for i in range(len(embeddings)):
        gallery = torch.cat([embeddings[:i], embeddings[i + 1 :]])
        gallery_identities = torch.cat([identities[:i], identities[i + 1 :]])
        scores = gallery @ embeddings[i]
        hits += int(gallery_identities[scores.argmax()] == identities[i])
    return 100 * hits / len(embeddings)


def mates_against_rest(
    embeddings: Tensor, identities: Tensor, distractors: Tensor | None = None, max_rank: int = 10,
    probes: range | None = None,
) -> list[float]:  # fmt: skip
    """CMC percent of ranks 1..max_rank: for every probe and every mate of its a gallery is copied together.

    `embeddings` (N,D) and `distractors` (M,D) are L2-normalised. `probes` takes some of the N only.
    """
    hits, num_pairs = [0] * max_rank, 0
    for p in range(len(embeddings)) if probes is None else probes:
        for i in range(len(embeddings)):
            if i == p or identities[i] != identities[p]:
                continue
            parts = [embeddings[i : i + 1], embeddings[identities != identities[p]]]
            gallery = torch.cat(parts if distractors is None else [*parts, distractors])
            scores = gallery @ embeddings[p]
            rank = 1 + int((scores[1:] > scores[0]).sum())
            for k in range(rank - 1, max_rank):
                hits[k] += 1
            num_pairs += 1
    return [100 * count / num_pairs for count in hits]


def counted_cmc(
    embeddings: np.ndarray, identities: np.ndarray, pieces: Iterable[np.ndarray], max_rank: int = 10
) -> list[float]:
    """CMC percent with distractors in pieces (M,D): every score in float64, every rank counted. Plain, and no loop over
    pairs that copies: it is there to say what is right where the published loop would take days."""
    units = unit_rows(embeddings)
    scores = units @ units.T
    same = identities[:, None] == identities
    np.fill_diagonal(same, False)
    probe, mate = np.nonzero(same)
    rest = np.where(identities[:, None] == identities, -np.inf, scores)
    ranks = np.ones(len(probe), dtype=np.int64)
    for others in itertools.chain([rest], (units @ unit_rows(piece).T for piece in pieces)):
        for k in range(len(probe)):
            ranks[k] += np.count_nonzero(others[probe[k]] > scores[probe[k], mate[k]] + TIE)
    return [100 * float(np.mean(ranks <= k)) for k in range(1, max_rank + 1)]


def unit_rows(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# -------------------------------------------------------------------------------------------------------- verification


def rates(threshold: float, scores: np.ndarray, genuine: np.ndarray) -> tuple[float, float, float]:
    """TPR, FPR and accuracy at one threshold; a score at the threshold is accepted."""
    accepted = scores >= threshold
    true_accepts = np.sum(np.logical_and(accepted, genuine))
    false_accepts = np.sum(np.logical_and(accepted, np.logical_not(genuine)))
    true_rejects = np.sum(np.logical_and(np.logical_not(accepted), np.logical_not(genuine)))
    false_rejects = np.sum(np.logical_and(np.logical_not(accepted), genuine))
    tpr = true_accepts / (true_accepts + false_rejects)
    fpr = false_accepts / (false_accepts + true_rejects)
    return float(tpr), float(fpr), float((true_accepts + true_rejects) / len(scores))


def ten_fold_verification(scores: np.ndarray, genuine: np.ndarray) -> tuple[float, float, float]:
    """Accuracy, AUC and EER in percent; each of ten contiguous folds has to hold pairs of both kinds.

    `scores` (N,) and `genuine` (N,) bool. Every threshold is tried on the nine folds that are not tested, and on the
    one that is.
    """
    thresholds = np.arange(-100, 101) / 100
    accuracy = np.zeros(NUM_FOLDS)
    tprs, fprs = np.zeros((NUM_FOLDS, NUM_THRESHOLDS)), np.zeros((NUM_FOLDS, NUM_THRESHOLDS))
    indices = np.arange(len(scores))
    for fold, test in enumerate(np.array_split(indices, NUM_FOLDS)):
        others = np.setdiff1d(indices, test)
        accuracy_of_others = np.zeros(NUM_THRESHOLDS)
        for t, threshold in enumerate(thresholds):
            _, _, accuracy_of_others[t] = rates(threshold, scores[others], genuine[others])
        best = thresholds[np.argmax(accuracy_of_others)]
        for t, threshold in enumerate(thresholds):
            tprs[fold, t], fprs[fold, t], _ = rates(threshold, scores[test], genuine[test])
        _, _, accuracy[fold] = rates(best, scores[test], genuine[test])
    tpr = np.concatenate([[0.0], tprs.mean(axis=0)[::-1], [1.0]])
    fpr = np.concatenate([[0.0], fprs.mean(axis=0)[::-1], [1.0]])
    area = float(sum((fpr[k + 1] - fpr[k]) * (tpr[k + 1] + tpr[k]) / 2 for k in range(len(fpr) - 1)))
    return 100 * float(accuracy.mean()), 100 * area, 100 * crossing(fpr, tpr)


def crossing(fpr: np.ndarray, tpr: np.ndarray) -> float:
    """FPR where 1 - TPR = FPR, point by point along the straight pieces."""
    for k in range(1, len(fpr)):
        before, after = fpr[k - 1] + tpr[k - 1] - 1, fpr[k] + tpr[k] - 1
        if after >= 0:
            return float(fpr[k - 1] - before / (after - before) * (fpr[k] - fpr[k - 1]))
    return 1.0
