"""What purification changes on made-up faces of people unseen in training: the published one, rivals, and erasure.

    python benchmarks/purification.py --output runs/purification --plot benchmarks/purification.png
    python benchmarks/purification.py --output runs/purification --variants plain iefp grl --seeds 0 1 2
    python benchmarks/purification.py --output runs/purification --add iefp-0.1="--mutual-information-weight 0.1"

iefp is the published method, implicit and explicit are its halves, iefp-prior adds the age prior; the others have no
purification unit. Every variant is measured as it was trained and with age erased from its features: NAME+erasure is
fitted on the training pictures, NAME+erasure-others on as many pictures of as many other people, of which it sees only
the ages.

Every variant has the same backbone, recipe and budget, and with one seed the same people, pictures, age branch and
order of batches; another seed draws other people too. A run takes about two minutes on one quiet thread, the default
three variants with three seeds half an hour. What is finished in --output is not done again, and features are kept in
it for benchmarks/erasure_choices.py. The last line is JSON.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.held_out import FIGURES, erased, features_of, fit_erasure, measure
from benchmarks.paired import tables
from benchmarks.timing import machine
from data.synthetic.sets import write_training_set
from evaluation.groups.seeds import of_figure, paired_difference, summarise
from utils.distributed import choose_device
from utils.files import write_json

MOST_CURVES = 9  # in a plot; of more the erased ones are left out, but for plain's
ROOT = Path(__file__).resolve().parent.parent
PLAIN = "plain"
PUBLISHED_LAMBDA = "0.001"
VARIANTS = {
    PLAIN: "--purification 0 --disentangle none",  # as recipes/plain-cosface.args
    "implicit": "--purification 1 --disentangle none",
    "explicit": f"--purification 0 --mutual-information-weight {PUBLISHED_LAMBDA}",
    "iefp": f"--purification 1 --mutual-information-weight {PUBLISHED_LAMBDA}",
    "prior": "--purification 0 --disentangle none --age-prior 1",
    "iefp-prior": f"--purification 1 --mutual-information-weight {PUBLISHED_LAMBDA} --age-prior 1",
    "prior-bandwidth-2": "--prior-bandwidth 2 --purification 0 --disentangle none --age-prior 1",
    "prior-bandwidth-8": "--prior-bandwidth 8 --purification 0 --disentangle none --age-prior 1",
    "folded-in-training": "--erase-each-epoch folded --purification 0 --disentangle none",
    "erased-in-training": "--erase-each-epoch kept --purification 0 --disentangle none",
    "grl": "--purification 0 --disentangle grl",
    "dal": "--purification 0 --disentangle dal",
    "orthogonal": "--purification 0 --disentangle orthogonal",
    "inter_prototype": "--purification 0 --disentangle inter_prototype --child-pictures 3",
}
TRIED = {"--prior-bandwidth", "--erase-each-epoch"}  # flags of benchmarks/tried_in_training.py, not of train.py
ERASED, ERASED_BY_OTHERS = "+erasure", "+erasure-others"  # follow the variant's name
FIRST_HELD_OUT = 5 * 10**7  # person; beyond all that data.synthetic.sets draws for training and benchmarks
FIRST_OTHER = FIRST_HELD_OUT + 10**6  # person; neither trained nor measured on

ALL_FIGURES = {
    **FIGURES,
    "age_balanced_accuracy_percent": ("age probe, balanced, %", 1),
    "club_nats": ("CLUB, nats", 1),
    "feature_deviation": ("deviation of a feature", 2),
    "steps_per_second": ("steps/s", 2),
}


def run_train(flags: list[str], log_path: Path) -> None:
    """Runs train.py, or tried_in_training.py where a flag asks for it, in a process of its own; its output is kept."""
    is_tried = any(flag.partition("=")[0] in TRIED for flag in flags)
    script = ROOT / ("benchmarks/tried_in_training.py" if is_tried else "train.py")
    with log_path.open("a") as log:
        done = subprocess.run([sys.executable, str(script), *flags], stdout=log, stderr=log, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{script.name} ended with status {done.returncode}, see {log_path}: {' '.join(flags)}")


def draw_faces(folder: Path, seed: int, flags: argparse.Namespace) -> None:
    """A seed's people: "train" within --years of their lives, "held_out" and "other" over the whole of theirs."""
    parts = {
        "train": (flags.people, flags.pictures, {"years_per_person": flags.years}),
        "held_out": (flags.held_out, flags.held_out_pictures, {"first_person": FIRST_HELD_OUT}),
        "other": (flags.people, flags.pictures, {"first_person": FIRST_OTHER}),
    }
    for name, (people, pictures, which) in parts.items():
        if not (folder / name).exists():
            write_training_set(folder / name, people, pictures, seed=seed, nuisance=flags.nuisance, progress=False,
                               **which)  # fmt: skip


def common_flags(flags: argparse.Namespace, train: Path, run_folder: Path, seed: int) -> list[str]:
    entry = {"train-data": train, "run-folder": run_folder, "backbone": flags.backbone, "batch-size": flags.batch,
            "workers": flags.workers, "device": flags.device, "precision": flags.precision, "seed": seed,
            "log-every": 5, "keep-checkpoints": 1}  # fmt: skip
    return [word for name, value in entry.items() for word in (f"--{name}", str(value))]


def train_age_branch(flags: argparse.Namespace, train: Path, folder: Path, seed: int) -> Path:
    """The seed's age branch, which all variants share."""
    weights = folder / "age.pth"
    if not weights.exists():
        recipe = ["--stage", "age", "--epochs", str(flags.age_epochs), "--learning-rate", "0.03",
                  "--learning-rate-epochs", str(max(1, flags.age_epochs - 1))]  # fmt: skip
        run_train([*common_flags(flags, train, folder, seed), *recipe], folder.with_name(folder.name + ".log"))
    return weights


def train_identity_branch(
    flags: argparse.Namespace, train: Path, age_weights: Path, folder: Path, seed: int, variant: str
) -> Path:
    weights = folder / "iefp.pth"
    if not weights.exists():
        drops = [str(max(1, round(share * flags.epochs))) for share in (0.7, 0.9)]
        recipe = ["--age-weights", str(age_weights), "--epochs", str(flags.epochs),
                  "--learning-rate", str(flags.learning_rate), "--learning-rate-epochs", *drops,
                  "--cache-folder", str(folder.parent / "age_cache")]  # fmt: skip
        run_train([*common_flags(flags, train, folder, seed), *recipe, *shlex.split(variant)],
                  folder.with_name(folder.name + ".log"))  # fmt: skip
    return weights


def steps_per_second(log: Path, batch: int) -> float:
    """Median over the log lines of a run."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    return statistics.median(event["images_per_second"] / batch for event in events if event["event"] == "train")


def run_seed(flags: argparse.Namespace, variants: dict[str, str], seed: int) -> dict[str, dict]:
    """Figures of each variant with one seed, read from the output folder where they are there."""
    folder, figures = flags.output / f"seed{seed}", {}
    folder.mkdir(parents=True, exist_ok=True)
    draw_faces(folder, seed, flags)
    for name, variant in variants.items():
        path = folder / f"{name}.json"
        if not path.exists():
            age_weights = train_age_branch(flags, folder / "train", folder / "age", seed)
            weights = train_identity_branch(flags, folder / "train", age_weights, folder / name, seed, variant)
            measured = measure_all(flags, weights, folder)
            measured[""]["steps_per_second"] = steps_per_second(folder / name / "log.jsonl", flags.batch)
            write_json(path, {"flags": variant, "figures": measured})
        kept = json.loads(path.read_text())
        if kept["flags"] != variant:
            raise SystemExit(f"{path} is of other flags than {variant!r}: give the variant another name.")
        for suffix, entry in kept["figures"].items():
            figures[name + suffix] = entry
            print(f"seed {seed} {name}{suffix}: " + ", ".join(f"{key} {entry[key]:.4g}" for key in ALL_FIGURES
                                                              if entry.get(key) is not None), flush=True)  # fmt: skip
    return figures


def measure_all(flags: argparse.Namespace, weights: Path, folder: Path) -> dict[str, dict]:
    """The figures as trained ("") and with age erased."""
    device = choose_device(flags.device)
    train, held_out, other = (
        features_of(weights, folder / part, device, weights.with_name(f"features_{part}.npz"))
        for part in ("train", "held_out", "other")
    )
    variants = {"": held_out, ERASED: erased(held_out, fit_erasure(train)),
                ERASED_BY_OTHERS: erased(held_out, fit_erasure(other))}  # fmt: skip
    return {suffix: measure(features, flags.club_steps) for suffix, features in variants.items()}


def check_settings(flags: argparse.Namespace) -> dict:
    """What all runs of an output folder must share; raises SystemExit where it was begun with something else."""
    names = ("people", "pictures", "years", "held_out", "held_out_pictures", "nuisance", "epochs", "age_epochs",
             "backbone", "batch", "learning_rate", "precision", "club_steps")  # fmt: skip
    settings, path = {name: getattr(flags, name) for name in names}, flags.output / "settings.json"
    flags.output.mkdir(parents=True, exist_ok=True)
    if path.exists() and (begun := json.loads(path.read_text())) != settings:
        raise SystemExit(f"{flags.output} was begun with {begun}: give these, or another --output.")
    write_json(path, settings)
    return settings


def plot(runs: dict, path: Path) -> None:
    """Each figure's paired difference to plain, a dot a seed, and the TAR over the years between two pictures."""
    from matplotlib.figure import Figure

    others = [name for name in runs if name != PLAIN]
    figure = Figure(figsize=(12, 2.6 + 0.5 * max(4, len(others))), layout="constrained")
    columns = len(FIGURES) // 2 + 1
    grid = figure.add_gridspec(2, columns)
    for number, name in enumerate(FIGURES):
        axes = figure.add_subplot(grid[divmod(number, columns)])
        plot_differences(axes, runs, others, name)
        axes.tick_params(labelleft=number % columns == 0)
    plot_gaps(figure.add_subplot(grid[1, len(FIGURES) - columns :]), runs)  # what is left of the second row
    figure.suptitle("difference to plain CosFace: a dot a seed, bars are 95 % intervals of the mean", fontsize=10)
    figure.savefig(path, dpi=110)


def plot_differences(axes, runs: dict, others: list[str], name: str) -> None:
    styles = styles_of(runs)
    for row, variant in enumerate(others):
        color = styles[variant]["color"]
        values, plain = of_figure(runs[variant], name), of_figure(runs[PLAIN], name)
        if not values.keys() & plain.keys():
            continue
        entry = paired_difference(values, plain)
        axes.errorbar(entry["mean"], row, xerr=entry["half_width"], color=color, marker="|", capsize=3)
        for seed in values.keys() & plain.keys():
            axes.plot(values[seed] - plain[seed], row - 0.25, ".", color=color, markersize=5)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(range(len(others)), others, fontsize=8)
    axes.set_ylim(len(others) - 0.4, -0.6)
    axes.set_title(FIGURES[name][0], fontsize=8)
    axes.tick_params(axis="x", labelsize=8)


def plot_gaps(axes, runs: dict) -> None:
    gaps = next(iter(next(iter(runs.values())).values()))["tar_by_gap_percent"]
    styles = styles_of(runs)
    for variant, by_seed in runs.items():
        if len(runs) > MOST_CURVES and "+" in variant and not variant.startswith(PLAIN + "+"):
            continue
        means = [[of["tar_by_gap_percent"][gap] for of in by_seed.values()] for gap in gaps]
        entry = [statistics.fmean(values) if None not in values else float("nan") for values in means]
        axes.plot(list(gaps), entry, marker="o", markersize=3, label=variant, **styles[variant])
    axes.set_title("TAR at FAR 1e-3, % by years between", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def styles_of(runs: dict) -> dict[str, dict[str, str]]:
    """A colour for each variant that was trained, a dash for how age was erased from it."""
    dashes, colors, styles = {"": "-", ERASED[1:]: "--", ERASED_BY_OTHERS[1:]: ":"}, {}, {}
    for name in runs:
        trained, _, how = name.partition("+")
        color = colors.setdefault(trained, f"C{len(colors)}")
        styles[name] = {"color": color, "linestyle": dashes[how]}
    return styles


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of data, runs and figures; goes on in it")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain", "iefp", "prior"])
    parser.add_argument("--add", nargs="+", default=[], metavar="NAME=FLAGS", help="further variants, train.py's flags")
    parser.add_argument("--baseline", default=PLAIN, help="the variant that the table's differences are to")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of data and training together")
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--pictures", type=int, default=12, help="a person")
    parser.add_argument("--years", type=int, help="within which a person's pictures to learn from lie; the whole life")
    parser.add_argument("--held-out", type=int, default=60, help="people to be measured on")
    parser.add_argument("--held-out-pictures", type=int, default=10, help="a person")
    parser.add_argument("--nuisance", type=float, default=1.0, help="pose, light and the like; the demo has 1")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--age-epochs", type=int, default=4)
    parser.add_argument("--backbone", default="iresnet18_quarter")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--club-steps", type=int, default=200, help="of the estimator that is fitted afterwards")
    parser.add_argument("--precision", default="auto", help="of training; bf16 is faster on CPUs that have it")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    return parser.parse_args()


def main() -> None:
    flags = parse_flags()
    variants = {name: VARIANTS[name] for name in flags.variants}
    for added in flags.add:
        name, equals, words = added.partition("=")
        if not equals or name in VARIANTS:
            raise SystemExit(f"--add {added}: give NAME=FLAGS with a name that is not taken.")
        variants[name] = words
    settings = check_settings(flags)
    by_seed = {seed: run_seed(flags, variants, seed) for seed in flags.seeds}
    runs = {name: {seed: by_seed[seed][name] for seed in flags.seeds} for name in by_seed[flags.seeds[0]]}
    summary = summarise(runs, flags.baseline, list(ALL_FIGURES))
    print(tables(summary, ALL_FIGURES))
    if flags.plot and PLAIN in runs and len(runs) > 1:
        plot(runs, flags.plot)
    device = choose_device(flags.device)
    print(json.dumps({"benchmark": "purification", "settings": settings, "variants": variants, **machine(device),
                      "summary": summary, "runs": runs}))  # fmt: skip


if __name__ == "__main__":
    main()
