"""A report as test.py writes it, of made-up embeddings, by the functions that measure real ones."""

import io
import json
from functools import cache

import numpy as np
from PIL import Image

from evaluation.embeddings.embedding_set import EmbeddingSet
from evaluation.embeddings.extraction import Extracted
from evaluation.report.page import report_html
from evaluation.scoring import (
    Options,
    compare,
    score_identities,
    score_pair_list,
    score_pictures,
    score_probe_gallery,
)
from meta import PUBLISHED_FIGURES
from utils.cli import as_plain

HOSTILE = '<script>alert("it\'s")</script>\u202egnp.exe\x1b[31m & co'
DIM = 16
SECTIONS = (
    "summary", "side-by-side", "verification", "score-histograms", "identification", "age-gap",
    "false-matches", "age-leak", "worst-errors", "did-not-run", "how-to-read",
)  # fmt: skip


@cache
def example_json() -> str:
    """Two models on FG-NET, MORPH2 and a list of pairs, as the text of results.json."""
    rng = np.random.default_rng(7)
    people = np.repeat(np.arange(14), 8)
    ages = rng.integers(0, 60, len(people))
    ages[3] = -1
    found = {name: _identities(rng, people, ages, noise) for name, noise in (("A", 0.9), (HOSTILE, 1.3))}
    models = [
        {"name": "A", "weights": "runs/a/iefp.pth", "sha256": "0" * 64, "backbone": "iresnet50", "purification": 1},
        {"name": HOSTILE, "embeddings": "others.npz", "sha256": "f" * 64},
    ]
    for model in models:
        of = found[model["name"]]
        model["results"] = {
            name: {"title": title, "benchmark": benchmark} | of[name][0] for name, (title, benchmark) in SETS.items()
        }
        model["did_not_run"] = {"cacd_vs": f"folder {HOSTILE} does not exist: get it."}
    comparisons = [
        {"setting": name, "title": title, "a": HOSTILE, "b": "A"}
        | compare(found[HOSTILE][name][1], found["A"][name][1])
        for name, (title, _) in SETS.items()
    ]
    return json.dumps(
        {
            "schema": 3,
            "date": "2026-01-02",
            "software": {"torch": "2.6.0", "numpy": "2.0.0"},
            "models": models,
            "comparisons": comparisons,
            "published": [as_plain(figure) for figure in PUBLISHED_FIGURES],
        }
    )


# name in results.json -> title, and the name by which papers report it
SETS = {"fgnet": ("FG-NET", "fgnet"), "morph2_10000": ("MORPH2 10,000", "morph2"), "lfw.bin": ("lfw.bin", "lfw"),
        "UTK": ("UTK", None)}  # fmt: skip


def example_report() -> dict:
    """A copy of the report that a test may change."""
    return json.loads(example_json())


@cache
def example_page() -> str:
    return report_html(example_report(), picture)


def picture(setting: str, name: str) -> bytes | None:
    """A JPEG of one colour that depends on the name; none of 0_3.jpg."""
    if name == "0_3.jpg":
        return None
    packed = io.BytesIO()
    Image.new("RGB", (16, 16), (sum(name.encode()) % 256, 120, 90)).save(packed, "JPEG")
    return packed.getvalue()


def _identities(rng: np.random.Generator, people: np.ndarray, ages: np.ndarray, noise: float) -> dict:
    """Results and what comparing needs, by setting."""
    extracted = _extracted(rng, people, ages, noise)
    known = people, ages, np.where(ages < 0, 0, ages // 10)
    faces = EmbeddingSet(extracted, lambda i: f"{people[i]}_{i}.jpg", *known)
    options = Options(mutual_information=_mutual_information)
    sides = [_extracted(rng, np.arange(30), np.full(30, 20 + 9 * side), noise) for side in (0, 1)]
    sides = [
        EmbeddingSet(
            of_side, lambda i, side=side: f"{side}/{i}.jpg", np.arange(30), np.full(30, 20 + 9 * side),
            np.full(30, 2 + side),
        )
        for side, of_side in enumerate(sides)
    ]  # fmt: skip
    first = np.concatenate([np.arange(0, 112, 2), np.arange(0, 104, 2)])
    second = np.concatenate([np.arange(1, 112, 2), np.arange(0, 104, 2) + 8])
    genuine = people[first] == people[second]
    order = np.random.default_rng(0).permutation(100)
    pairs = first[order], second[order], genuine[order]
    return {
        "fgnet": score_identities(faces, options),
        "morph2_10000": score_probe_gallery(*sides, options),
        "UTK": score_pictures(_unnamed(rng, noise), options),
        "lfw.bin": score_pair_list(EmbeddingSet(extracted, lambda i: f"{HOSTILE}{i}"), *pairs, options, with_sum=True),
    }


def _unnamed(rng: np.random.Generator, noise: float) -> EmbeddingSet:
    """Pictures of as many people, of whom children look alike; nobody says who they are."""
    ages = np.sort(rng.integers(0, 60, 180))
    ages[-4:] = 70
    extracted = _extracted(rng, np.arange(180), 8 * np.maximum(0, 25 - ages), noise)
    return EmbeddingSet(extracted, lambda i: f"{ages[i]}_0_{i}.jpg", ages=ages)


def _extracted(rng: np.random.Generator, people: np.ndarray, ages: np.ndarray, noise: float) -> Extracted:
    """Embeddings around one direction a person that also drift with age."""
    centres = np.random.default_rng(1).normal(size=(people.max() + 1, DIM))
    drift = np.random.default_rng(2).normal(size=DIM)
    around = centres[people] + ages[:, None] / 60 * drift
    original, mirror = (around + noise * rng.normal(size=around.shape) for _ in range(2))
    age_features = ages[:, None] / 30 * drift + 0.3 * rng.normal(size=around.shape)
    chances = rng.dirichlet(np.ones(8), len(people))
    grey = rng.normal(size=(len(people), 20))
    views = [view.astype(np.float32) for view in (original, mirror, chances, chances, grey, age_features)]
    return Extracted(*views)


def _mutual_information(age: np.ndarray, identity: np.ndarray, permutation: np.ndarray) -> float:
    """A stand-in for CLUB that follows the permutation."""
    own, other = (age * identity).sum(axis=1), (age[permutation] * identity).sum(axis=1)
    return float(np.mean(own - other)) / 100
