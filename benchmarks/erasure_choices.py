"""Which choices of the erasure matter, and how it bears poor ages: on features that benchmarks/purification.py kept.

    python benchmarks/purification.py --output runs/years --years 12 --variants plain iefp prior --seeds 0 1 2 3
    python benchmarks/erasure_choices.py --runs runs/years --trained plain

No network is trained; with a purification unit, one is run up to the unit. Figures are of people unseen in training,
differences to the features as trained, paired by seed. The last line is JSON.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.held_out import FIGURES, Features, features_of, fit_erasure, recognition
from benchmarks.paired import tables
from data.synthetic.people import SHOT_STREAM, random_stream, sample_shot
from data.synthetic.sets import FIRST_PERSON
from evaluation.groups.seeds import summarise
from evaluation.probes import age_probe
from meta import AGE_GROUP_MIDDLES
from models.erasure import BASES, spline
from models.weights import load_for_embedding

AS_TRAINED = "as trained"
LIFE_STAGES = (18, 45)  # years


@dataclasses.dataclass(frozen=True)
class Run:
    """What one training gave: features of the people it was trained on, of held-out ones, and of others."""

    train: Features
    held_out: Features
    other: Features
    before_unit: tuple[Features, Features] | None  # of training and held-out people, None without a unit
    unit: Callable[[np.ndarray], np.ndarray]  # the purification unit, (N, 512) -> (N, 512)
    branch_ages: np.ndarray  # of the training pictures, by the age branch
    shots: np.ndarray  # (N, 12) pose and light that the training pictures were drawn with
    draw: np.random.Generator


def through(change: Callable[[np.ndarray], np.ndarray], features: Features) -> Features:
    """Both views changed."""
    return features._replace(original=change(features.original), mirror=change(features.mirror))


def sample(features: Features, rows: np.ndarray) -> Features:
    return Features(*(array[rows] for array in features))


# ---------------------------------------------------------------------------------------------------------- choices


def choices(run: Run) -> Iterator[tuple[str, Callable[[], Features]]]:
    """The name of each choice, and what gives the held-out people's features by it."""
    yield AS_TRAINED, lambda: run.held_out
    yield "erasure", lambda: through(fit_erasure(run.train), run.held_out)
    yield from bases_and_shrinkages(run)
    yield from places(run)
    yield from further_steps(run)
    yield from poor_ages(run)


def bases_and_shrinkages(run: Run):
    bases = {
        "linear in age": BASES["linear"](),
        "8 age groups": BASES["groups"](),
        "knots 8 16 30 50 80": spline((8, 16, 30, 50, 80)),
    }
    for name, basis in bases.items():
        yield name, lambda basis=basis: through(fit_erasure(run.train, basis=basis), run.held_out)
    for shrinkage in (1e-5, 0.1, 10.0):
        yield f"shrinkage {shrinkage:g}", lambda s=shrinkage: through(fit_erasure(run.train, shrinkage=s), run.held_out)


def places(run: Run):
    """What it is fitted on, and at which layer."""
    yield "fitted on one view", lambda: through(fit_erasure(run.train, views=1), run.held_out)
    yield "fitted on other people", lambda: through(fit_erasure(run.other), run.held_out)
    both = Features(*(np.concatenate(pair) for pair in zip(run.train, run.other, strict=True)))
    yield "fitted on training and other people", lambda: through(fit_erasure(both), run.held_out)

    def of_units() -> Features:
        train, held_out = (through(normalised, features) for features in (run.train, run.held_out))
        return through(fit_erasure(train), held_out)

    yield "after L2 normalisation", of_units
    if run.before_unit is not None:
        train, held_out = run.before_unit
        yield "before the unit", lambda: through(lambda x: run.unit(fit_erasure(train)(x)), held_out)


def further_steps(run: Run):
    """More than the age erased, or in another way."""
    concepts = np.concatenate([spline()(run.train.ages), run.shots], axis=1)
    rows = np.arange(len(concepts))
    yield (
        "pose and light too",
        lambda: through(
            fit_erasure(run.train, rows, basis=lambda numbers: concepts[numbers.astype(int)]), run.held_out
        ),
    )
    yield "slopes by life stage too", lambda: stage_slopes_erased(run)
    for factor in (3.0, 10.0):
        yield f"within-person whitening after it, {factor:g}", lambda factor=factor: whitened(run, run.train, factor)
    yield "mean of the true age subtracted", lambda: true_age_subtracted(run)


def poor_ages(run: Run):
    """Ages that are wrong or guessed, and few pictures."""
    for years in (5, 10):
        noise = years * run.draw.standard_normal(len(run.train.ages))
        noisy = np.clip(run.train.ages + noise, 0, None)
        yield f"ages wrong by {years} years", lambda ages=noisy: through(fit_erasure(run.train, ages), run.held_out)
    yield "ages by the age branch", lambda: through(fit_erasure(run.train, run.branch_ages), run.held_out)
    for name, features in {"": run.train, " of other people": run.other}.items():
        order = run.draw.permutation(len(features.ages))
        for percent in (50, 25, 10, 1):
            some = sample(features, order[: len(order) * percent // 100])
            yield f"{percent} % of the pictures{name}", lambda some=some: through(fit_erasure(some), run.held_out)


def normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def stage_slopes_erased(run: Run) -> Features:
    """Beside the age's functions, the slopes of within-person ageing below 18, to 44, and above."""
    erasure = fit_erasure(run.train)
    slopes = []
    stages = np.digitize(run.train.ages, LIFE_STAGES)
    purified = erasure(run.train.original)
    for stage in range(len(LIFE_STAGES) + 1):
        of_stage = stages == stage
        years, rows = within_person(run.train.identities[of_stage], run.train.ages[of_stage, None], purified[of_stage])
        slopes.append((rows.T @ years)[:, 0] / max(float((years**2).sum()), 1.0))
    directions = np.linalg.qr(np.stack(slopes, axis=1))[0]
    return through(lambda x: (y := erasure(x)) - (y @ directions) @ directions.T, run.held_out)


def whitened(run: Run, train: Features, factor: float) -> Features:
    """Within-person covariance whitened after the erasure, shrunk by so many times its mean eigenvalue."""
    erasure = fit_erasure(train)
    (rows,) = within_person(train.identities, erasure(train.original))
    covariance = rows.T @ rows / len(rows)
    shrunk = covariance + factor * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(shrunk)
    whitening = vectors / np.sqrt(values) @ vectors.T
    return through(lambda x: erasure(x) @ whitening, run.held_out)


def within_person(identities: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
    """Rows less their person's mean."""
    people, codes = np.unique(identities, return_inverse=True)
    counts = np.bincount(codes)[:, None]
    centred = []
    for rows in columns:
        sums = np.zeros((len(people), rows.shape[1]))
        np.add.at(sums, codes, rows)
        centred.append(rows - (sums / counts)[codes])
    return centred


def true_age_subtracted(run: Run) -> Features:
    """Needs the age of every picture that is compared: how much would knowing it be worth?"""
    basis = spline()
    z = np.concatenate([basis(run.train.ages), np.ones((len(run.train.ages), 1))], axis=1)
    weights = np.linalg.lstsq(z, run.train.original.astype(np.float64), rcond=None)[0]
    of_age = np.concatenate([basis(run.held_out.ages), np.ones((len(run.held_out.ages), 1))], axis=1) @ weights
    return through(lambda x: x - of_age, run.held_out)


# -------------------------------------------------------------------------------------------------------- the runs


def open_run(folder: Path, trained: str, seed: int, settings: dict) -> Run:
    """The features of one seed's training; those that are missing are extracted and kept."""
    weights = folder / trained / "iefp.pth"
    cpu = torch.device("cpu")
    train, held_out, other = (
        features_of(weights, folder / part, cpu, weights.with_name(f"features_{part}.npz"))
        for part in ("train", "held_out", "other")
    )
    model, _ = load_for_embedding(weights)
    has_unit = any(key.startswith("backbone_id.spu.") for key in model.state_dict())
    unit = in_numpy(model.backbone_id.spu)
    before = None
    if has_unit:
        before = tuple(
            features_of(weights, folder / part, cpu, weights.with_name(f"features_{part}_before.npz"), with_unit=False)
            for part in ("train", "held_out")
        )
    probabilities = torch.softmax(model.age_logits(torch.from_numpy(train.of_age)), dim=1).detach().numpy()
    return Run(
        train, held_out, other, before, unit,
        branch_ages=probabilities @ np.array(AGE_GROUP_MIDDLES, np.float64),
        shots=shots_of(len(train.ages), seed, settings),
        draw=np.random.default_rng(seed),
    )  # fmt: skip


def in_numpy(module: torch.nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    @torch.inference_mode()
    def apply(rows: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(rows.astype(np.float32))).numpy()

    return apply


def shots_of(num_pictures: int, seed: int, settings: dict) -> np.ndarray:
    """Pose, light and colour of each training picture, as data.synthetic.sets draws them."""
    rows = []
    for index in range(num_pictures):
        person = FIRST_PERSON["training"] + index // settings["pictures"]
        stream = random_stream(seed, SHOT_STREAM, person, index % settings["pictures"])
        rows.append(dataclasses.astuple(sample_shot(stream, settings["nuisance"]))[:12])
    return np.array(rows, np.float64)


def figures_of(features: Features) -> dict[str, float]:
    entry = recognition(features)
    probe = age_probe(features.original.astype(np.float32), features.ages, features.identities)
    return {name: (entry | probe)[name] for name in FIGURES}


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="--output of benchmarks/purification.py")
    parser.add_argument("--trained", default="plain", help="the variant whose features are used")
    return parser.parse_args()


def main() -> None:
    flags = parse_flags()
    settings = json.loads((flags.runs / "settings.json").read_text())
    folders = [folder for folder in flags.runs.glob("seed*") if (folder / f"{flags.trained}.json").exists()]
    if not folders:
        raise SystemExit(
            f"{flags.runs} holds no finished run of {flags.trained}: begin with benchmarks/purification.py."
        )
    runs: dict[str, dict[int, dict]] = {}
    for seed in sorted(int(folder.name.removeprefix("seed")) for folder in folders):
        run = open_run(flags.runs / f"seed{seed}", flags.trained, seed, settings)
        for name, purify in choices(run):
            runs.setdefault(name, {})[seed] = figures_of(purify())
        print(f"seed {seed} is done", flush=True)
    summary = summarise(runs, AS_TRAINED, list(FIGURES))
    print(tables(summary, FIGURES))
    print(json.dumps({"benchmark": "erasure choices", "trained": flags.trained, "settings": settings,
                      "summary": summary, "runs": runs}))  # fmt: skip


if __name__ == "__main__":
    main()
