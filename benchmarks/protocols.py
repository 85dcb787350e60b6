"""Time of the evaluation protocols against the published loops; a million distractors; a profile of all of test.py.

    python benchmarks/protocols.py                  FG-NET's and the pair lists' sizes, a minute or two
    python benchmarks/protocols.py --distractors 1000000    seconds and memory; needs 2 GB of disk and 4 GB of memory
    python benchmarks/protocols.py --probes         probes that read the age, false matches by age
    python benchmarks/protocols.py --whole 3        test.py on made-up faces, 3 per cent of the published sizes

The published loops and ours take turns in one process, on one thread, so that what else runs on the machine counts
little. The published loop over mates is timed on every fifth probe and multiplied by five, unless --full is given. The
last line is JSON.
"""

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# NumPy's library reads it once, as it is loaded: all cores for what stands alone, one where two take turns.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ.get("OPENBLAS_NUM_THREADS") or str(
    os.cpu_count() if any(flag.startswith(("--dist", "--probes", "--whole", "--score")) for flag in sys.argv) else 1
)

import numpy as np
import torch

from benchmarks import published_evaluation as published
from benchmarks.loading import peak_megabytes
from benchmarks.timing import machine, ratios, take_turns
from evaluation import protocols
from evaluation.pairs.false_matches import false_matches_by_age
from evaluation.probes import age_probe

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
NUM_IMAGES, NUM_IDENTITIES, FEWEST, MOST = 1_002, 82, 6, 18  # of FG-NET
NUM_PAIRS = 6_000  # of CALFW, and of LFW
EVERY_NTH_PROBE = 5
TEN_FOLDS_A_TURN = 20  # of ours: one takes less than a millisecond
SIZE = 512  # of an embedding
ROWS_A_PIECE = 8_192


# -------------------------------------------------------------------------------------------------- made-up embeddings


def fgnet_identities(draw: np.random.Generator) -> np.ndarray:
    """1,002 images of 82 people, 6 to 18 each."""
    counts = draw.integers(FEWEST, MOST + 1, NUM_IDENTITIES)
    while (excess := counts.sum() - NUM_IMAGES) != 0:
        k = draw.integers(NUM_IDENTITIES)
        counts[k] = np.clip(counts[k] - np.sign(excess), FEWEST, MOST)
    return np.repeat(np.arange(NUM_IDENTITIES), counts)


def embeddings_of(draw: np.random.Generator, identities: np.ndarray, spread: float = 4.0) -> np.ndarray:
    """(N, 512) float32: a centre for each identity, and noise `spread` times as long."""
    centres = draw.standard_normal((identities.max() + 1, SIZE), np.float32)
    return centres[identities] + spread * draw.standard_normal((len(identities), SIZE), np.float32)


# ---------------------------------------------------------------------------------------------- against the published


def measure_protocols(rounds: int, full: bool) -> dict:
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    identities = fgnet_identities(draw)
    faces = protocols.join_views(
        embeddings_of(draw, identities), embeddings_of(draw, identities), "concatenate"
    )  # (1002, 1024)
    genuine = np.arange(NUM_PAIRS) % 600 < 300  # lists hold genuine and impostor pairs in turns of 300
    scores = np.clip(draw.normal(0.1, 0.15, NUM_PAIRS) + 0.35 * genuine, -1, 1)
    rows, labels = torch.from_numpy(faces), torch.from_numpy(identities)
    part = 1 if full else EVERY_NTH_PROBE
    steps: dict[str, Callable] = {
        "published leave-one-out": lambda: published.leave_one_out(rows, labels),
        "leave-one-out": lambda: protocols.leave_one_out(faces, identities),
        "published mates": lambda: published.mates_against_rest(rows, labels, probes=range(0, len(rows), part)),
        "mates": lambda: protocols.mates_against_rest(faces, identities),
        "published ten folds": lambda: published.ten_fold_verification(scores, genuine),
        "ten folds": lambda: [protocols.ten_fold_verification(scores, genuine) for _ in range(TEN_FOLDS_A_TURN)][-1],
    }
    difference = largest_difference(steps, full)
    seconds = take_turns(steps, CPU, rounds, warm_up=0, steps_a_turn=1)  # the comparison has warmed up
    seconds["published mates"] = [part * each for each in seconds["published mates"]]
    seconds["ten folds"] = [each / TEN_FOLDS_A_TURN for each in seconds["ten folds"]]
    for whose in ("published ", ""):
        both = zip(seconds[f"{whose}leave-one-out"], seconds[f"{whose}mates"], strict=True)
        seconds[f"{whose}FG-NET, both"] = [sum(each) for each in both]
    measured = {"benchmark": "evaluation", "rounds": rounds, "published_mates_in_full": full, **machine_metadata(),
            "largest_difference": difference}  # fmt: skip
    print(f"{'':16}{'published ms':>14}{'ours ms':>10}   times as fast (middle half)")
    for name in ("leave-one-out", "mates", "FG-NET, both", "ten folds"):
        slow, fast = (1000 * float(np.median(seconds[whose + name])) for whose in ("published ", ""))
        ratio = ratios(seconds[f"published {name}"], seconds[name])
        measured[name] = {"published_ms": round(slow, 1), "ms": round(fast, 3), "times_as_fast": ratio}
        print(f"{name:16}{slow:14,.0f}{fast:10.2f}   {ratio['median']:.0f} ({ratio['low']:.0f} to {ratio['high']:.0f})")
    print(f"{len(faces):,} images of {NUM_IDENTITIES} people, {faces.shape[1]} numbers each; {NUM_PAIRS:,} pairs; "
          f"figures differ by {difference:.2g} points at most{'' if full else ', mates not compared'}")  # fmt: skip
    return measured


def largest_difference(steps: dict[str, Callable], full: bool) -> float:
    """In per cent points, of any figure of both; that of mates is in only where all probes are.

    The published ranks are those of float32 scores, so not every figure has to be the same to the last digit.
    """
    pairs = [([steps["published leave-one-out"]()], steps["leave-one-out"]()),
             (steps["published ten folds"](), steps["ten folds"]())]  # fmt: skip
    theirs, ours = steps["published mates"](), steps["mates"]()
    pairs += [(theirs, ours)] if full else []
    return max(float(np.abs(np.subtract(figures, list(result.values()))).max()) for figures, result in pairs)


def machine_metadata() -> dict:
    return machine(CPU) | {"numpy": np.__version__}


# -------------------------------------------------------------------------------------------------------- distractors


def pieces_of(path: Path) -> Iterator[np.ndarray]:
    """The rows of a file, some at a time."""
    with open(path, "rb") as file:
        while len(numbers := np.fromfile(file, np.float32, ROWS_A_PIECE * SIZE)):
            yield numbers.reshape(-1, SIZE)


WAYS: dict[str, Callable[[Path], object]] = {
    "an array": lambda path: np.fromfile(path, np.float32).reshape(-1, SIZE),
    "a memory map": lambda path: np.memmap(path, np.float32, "r").reshape(-1, SIZE),
    "pieces": pieces_of,
}


def measure_distractors(count: int, check: bool) -> dict:
    measured = {"benchmark": "evaluation, distractors", "distractors": count, **machine_metadata(), "ways": {}}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "distractors.f32")
        draw = np.random.default_rng(1)
        with open(path, "wb") as file:
            for start in range(0, count, ROWS_A_PIECE):
                draw.standard_normal((min(ROWS_A_PIECE, count - start), SIZE), np.float32).tofile(file)
        print(f"{'distractors as':16}{'seconds':>10}{'of CPU':>10}{'peak GB':>10}{'before GB':>12}")
        for way in WAYS:
            command = [sys.executable, __file__, "--score-file", str(path), "--way", way]
            row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            measured["ways"][way] = row
            print(f"{way:16}{row['seconds']:10.1f}{row['cpu_seconds']:10.1f}{row['peak_gb']:10.2f}"
                  f"{row['before_gb']:12.2f}")  # fmt: skip
        results = [row["cmc"] for row in measured["ways"].values()]
        if check:
            faces, identities = distractor_probes()
            began = time.perf_counter()
            results.append(published.counted_cmc(faces, identities, pieces_of(path)))
            measured["float64_seconds"] = round(time.perf_counter() - began, 1)
            print(f"counted in float64, every score: {measured['float64_seconds']} s")
        measured["published_hours"] = round(published_seconds(count) / 3600, 1)
    measured["same"] = all(np.allclose(cmc, results[0], rtol=1e-12) for cmc in results)
    print(f"{'the same' if measured['same'] else 'DIFFERENT'} figures from all: rank 1 {results[0][0]:.3f} %, "
          f"rank 10 {results[0][9]:.3f} %")  # fmt: skip
    print(f"the published loop would take {measured['published_hours']:,} hours (extrapolated: {SHARE_OF_PUBLISHED})")
    return measured


def distractor_probes() -> tuple[np.ndarray, np.ndarray]:
    """So far apart that distractors come between mates; else every figure would be 100 %."""
    draw = np.random.default_rng(0)
    identities = fgnet_identities(draw)
    return embeddings_of(draw, identities, spread=2.2), identities


def score_file(path: Path, way: str) -> None:
    """Runs in a process of its own: prints seconds and memory as JSON."""
    faces, identities = distractor_probes()
    before, began, cpu_began = peak_megabytes(), time.perf_counter(), time.process_time()
    result = protocols.mates_against_rest(faces, identities, WAYS[way](path))
    print(json.dumps({"seconds": round(time.perf_counter() - began, 2), "cmc": list(result.values()),
                      "cpu_seconds": round(time.process_time() - cpu_began, 2),
                      "peak_gb": round(peak_megabytes() / 1000, 3), "before_gb": round(before / 1000, 3)}))  # fmt: skip


SHARE_OF_PUBLISHED = "two probes against 50,000 distractors were timed"


def published_seconds(count: int) -> float:
    """The published loop's time with `count` distractors: so many pairs, and so much to copy for each."""
    faces, identities = distractor_probes()
    rows = torch.nn.functional.normalize(torch.from_numpy(faces))
    distractors = torch.nn.functional.normalize(torch.randn(min(count, 50_000), SIZE))
    counts = np.bincount(identities)
    began = time.perf_counter()
    published.mates_against_rest(rows, torch.from_numpy(identities), distractors, probes=range(2))
    a_pair = (time.perf_counter() - began) / (2 * (counts[0] - 1))
    return a_pair * float(np.sum(counts * (counts - 1))) * count / len(distractors)


# --------------------------------------------------------------------------------------------------------- age probes

NUM_UNNAMED = 10_000  # pictures of people whom nobody names
PLANTED = 6.0  # how far 20 years move an embedding, in standard deviations of one of its numbers


def measure_probes(rounds: int) -> dict:
    """Seconds of CPU of the whole `age_probe`, where no age is in the embeddings and where one is, without its
    non-linear reader too, and of false matches by age."""
    draw = np.random.default_rng(0)
    identities, ages = fgnet_identities(draw), draw.integers(0, 70, NUM_IMAGES)
    faces = protocols.join_views(embeddings_of(draw, identities, 1), embeddings_of(draw, identities, 1), "concatenate")
    direction = draw.standard_normal(faces.shape[1])
    moved = PLANTED * ((ages - 35) / 20)[:, None] * direction / np.linalg.norm(direction)
    spread = np.linalg.norm(faces, axis=1).mean() / np.sqrt(faces.shape[1])
    steps = {
        f"{title}{words}": partial(age_probe, rows, ages, identities, linear_only=bool(words))
        for title, rows in (("random ages", faces), ("planted age", faces + spread * moved))
        for words in ("", ", linear alone")
    }
    steps["false matches"] = partial(false_matches_by_age, faces, ages, identities)
    many = draw.standard_normal((NUM_UNNAMED, faces.shape[1]))
    steps[f"false matches of {NUM_UNNAMED:,}"] = partial(false_matches_by_age, many, draw.integers(0, 70, NUM_UNNAMED))
    seconds = take_turns(steps, CPU, rounds, warm_up=0, steps_a_turn=1, clock=time.process_time)
    print("seconds of CPU and their middle half")
    for title, each in seconds.items():
        row = middle(each)
        print(f"  {title:32}{row['median']:8.2f} ({row['low']:.2f} to {row['high']:.2f})")
    measured = {"benchmark": "evaluation, probes", "rounds": rounds, **machine_metadata()}
    return measured | {"seconds": {title: middle(each) for title, each in seconds.items()}}


def middle(values: list[float]) -> dict[str, float]:
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": round(median, 2), "low": round(low, 2), "high": round(high, 2)}


# --------------------------------------------------------------------------------------------------- all of test.py

# What a share of the time is called, and the functions whose time, with all they call, it is. None is inside another.
COSTS = {
    "network": ("identity_features", "age_features", "age_logits"),
    "reading and decoding": ("decode",),
    "making batches": ("collate",),
    "mirror images, pixels to floats": ("both_views",),
    "grey pixels": ("grey_pixels",),
    "joining views": ("join_views",),
    "scoring": ("mates_against_rest", "pair_scores", "ten_fold_verification",
                "pair_list_figures", "age_group_error", "search_set", "search_gallery"),
    "beyond the published figures": ("analyse_identities", "analyse_pairs", "analyse_pictures", "analyse_probe_gallery",
                                     "all_pairs"),
    "report": ("report_html",),
    "listing pictures": ("index_identity_folders", "read_pair_list", "make_pairs"),
}  # fmt: skip
# Images: 1,002; 2 x 3,000; 2 x 10,000; 8,000; 12,000
PUBLISHED_SIZES = {"fgnet_people": 82, "morph2_3": 3_000, "morph2_10": 10_000, "cacd_vs_pairs": 4_000,
                   "calfw_pairs": 6_000}  # fmt: skip


def measure_whole(percent: float) -> dict:
    from data.synthetic.sets import write_all
    from models.iefp import IEFP
    from models.weights import iefp_file_tensors
    from tests.scripts import load_script

    test = load_script("test")
    torch.set_num_threads(os.cpu_count() or 1)
    size = {name: max(2, round(full * percent / 100)) for name, full in PUBLISHED_SIZES.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        counts = write_all(
            folder / "faces", workers=os.cpu_count() or 1, num_people=2, pictures_per_person=2,
            fgnet_people=size["fgnet_people"], fgnet_pictures_per_person=12,
            morph2_subjects=(size["morph2_3"], size["morph2_10"]),
            cacd_vs_pairs=max(20, size["cacd_vs_pairs"] // 20 * 20),
            calfw_pairs=max(20, size["calfw_pairs"] // 20 * 20), progress=False,
        )  # fmt: skip
        drawn = time.perf_counter() - began
        torch.manual_seed(0)
        torch.save(iefp_file_tensors(IEFP("iresnet18_quarter", 1, 2)), folder / "weights.pth")
        config = test.TestConfig(weights=(folder / "weights.pth",), face_dataset=folder / "faces", device="cpu",
                                 output=folder / "results", workers=0, keep_embeddings=False)  # fmt: skip
        profile = cProfile.Profile()
        status = profile.runcall(test.test, config)
    num_images = sum(counts.values()) - 4
    measured = {"benchmark": "evaluation, whole", "percent": percent, "images": num_images, "status": status,
            **machine_metadata(), "drawing_seconds": round(drawn, 1), **shares(profile, num_images),
            "scoring_at_full_size": scoring_seconds()}  # fmt: skip
    print(f"drawing {num_images:,} images took {drawn:.0f} s, test.py {measured['seconds']:.0f} s, in one process")
    print(f"{'':34}{'seconds':>9}{'share %':>9}{'us an image':>13}")
    for cost, row in measured["costs"].items():
        print(f"{cost:34}{row['seconds']:9.2f}{row['percent']:9.1f}{row['us_an_image']:13.0f}")
    print("scoring at the published sizes, in seconds:")
    print(", ".join(f"{title} {seconds}" for title, seconds in measured["scoring_at_full_size"].items()))
    return measured


def shares(profile: cProfile.Profile, num_images: int) -> dict:
    """The seconds of each of COSTS, most first, and of what is left."""
    stats = pstats.Stats(profile)
    ours = {key: row for key, row in stats.stats.items() if key[0].startswith(str(ROOT))}
    seconds = {
        cost: sum(row[3] for (_, _, function), row in ours.items() if function in functions)
        for cost, functions in COSTS.items()
    }
    seconds["the rest"] = stats.total_tt - sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return {
        "seconds": round(stats.total_tt, 2),
        "costs": {
            cost: {"seconds": round(each, 3), "percent": round(100 * each / stats.total_tt, 1),
                   "us_an_image": round(1e6 * each / num_images, 1)}
            for cost, each in ordered
        },
    }  # fmt: skip


def scoring_seconds() -> dict[str, float]:
    """All protocols on random embeddings of the published sizes, both joins and grey pixels, without and with what lies
    beyond the published figures: scoring grows faster than the number of images, so a tenth of them does not say what
    it takes."""
    from evaluation.embeddings.embedding_set import EmbeddingSet
    from evaluation.embeddings.extraction import GREY_SIDE, Extracted
    from evaluation.scoring import Options, score_identities, score_pair_list, score_probe_gallery

    draw, seconds = np.random.default_rng(2), {}

    def faces(people: np.ndarray, with_age: bool = False) -> EmbeddingSet:
        grey = draw.standard_normal((len(people), GREY_SIDE**2), np.float32) + 1.5  # all faces look alike in grey
        views = embeddings_of(draw, people), embeddings_of(draw, people)
        extracted = Extracted(*views, None, None, grey, embeddings_of(draw, people) if with_age else None)
        return EmbeddingSet(extracted, str, people, draw.integers(0, 70, len(people)), np.zeros(len(people), np.int64))

    def timed(title: str, score: Callable[[Options], object]) -> None:
        for words, options in ((title, Options(analysis=False)), (f"{title}, with all beyond", Options())):
            began = time.perf_counter()
            score(options)
            seconds[words] = round(time.perf_counter() - began, 2)

    def again(face_set: EmbeddingSet) -> EmbeddingSet:
        return replace(face_set)  # nothing normalised or multiplied yet

    fgnet = faces(fgnet_identities(draw), with_age=True)
    timed("FG-NET", lambda options: score_identities(again(fgnet), options))
    for count in (3_000, 10_000):
        sides = faces(np.arange(count)), faces(np.arange(count))
        timed(f"MORPH2 {count:,}", lambda options, sides=sides: score_probe_gallery(*map(again, sides), options))
    for title, count in (("CACD-VS", 4_000), ("CALFW", 6_000)):
        of, genuine = faces(np.arange(2 * count)), np.arange(count) % 2 == 0
        listed = np.arange(0, 2 * count, 2), np.arange(1, 2 * count, 2), genuine
        timed(title, lambda options, of=of, listed=listed: score_pair_list(again(of), *listed, options))
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--full", action="store_true",
        help="the published loop over mates on every probe",
    )  # fmt: skip
    parser.add_argument("--distractors", type=int, metavar="N", help="FG-NET's protocol with N distractors instead")
    parser.add_argument(
        "--probes", action="store_true", help="the probes that read the age, and false matches, instead"
    )
    parser.add_argument("--check", action="store_true", help="with --distractors: count every rank in float64 too")
    parser.add_argument(
        "--whole", type=float, nargs="?", const=10.0, metavar="PERCENT", help="profile of test.py instead"
    )
    parser.add_argument("--score-file", type=Path, metavar="PATH", help="what --distractors starts")
    parser.add_argument("--way", choices=list(WAYS), default="an array", help="with --score-file")
    flags = parser.parse_args()
    if flags.score_file:
        score_file(flags.score_file, flags.way)
    elif flags.probes:
        print(json.dumps(measure_probes(flags.rounds)))
    elif flags.whole:
        print(json.dumps(measure_whole(flags.whole)))
    elif flags.distractors:
        print(json.dumps(measure_distractors(flags.distractors, flags.check)))
    else:
        print(json.dumps(measure_protocols(flags.rounds, flags.full)))


if __name__ == "__main__":
    main()
