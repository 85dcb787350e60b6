"""Estimates of mutual information against a truth that is known: CLUB, sampled and unsampled, InfoNCE, NWJ, MINE.

    python benchmarks/estimators.py --plot benchmarks/estimators.png        under four minutes on one thread
    python benchmarks/estimators.py --sizes 20 --information 0 5 --steps 200 --seeds 0

x and y are standard normal, each number of y correlated with the same number of x by rho: I = -d/2 log(1 - rho^2)
nats. All estimators are trained for the same steps on the same fresh batches, and read on batches that come
afterwards. One estimate is that of one batch, as train.py logs it: bias and deviation between batches are reported.
"best q" is CLUB with the true q(y | x), and with its variance held above 1/e as the published network does: what no
training can improve. The last line is JSON.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from benchmarks.critics import BOUNDS, Critic
from benchmarks.timing import machine
from models.club import CLUB, SampledCLUB

LEARNING_RATE = 1e-3  # of Adam, for all
VARIANCES = 1 / math.e, math.e  # what exp(tanh) of models.club lies between


def correlation_of(information: float, size: int) -> float:
    """rho at which `size` independent pairs share `information` nats: I = -size/2 log(1 - rho^2)."""
    return math.sqrt(1 - math.exp(-2 * information / size))


def draw_pairs(num: int, size: int, correlation: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x, y (num, size), standard normal, correlated number by number."""
    x, noise = torch.randn(2, num, size, generator=generator)
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def best_club(
    size: int, correlation: float, scale: float = 1.0, variances: tuple[float, float] = (0.0, math.inf)
) -> float:
    """Expected CLUB estimate where q(scale y | x) has the true mean, and the true variance v held within `variances`.

    E[(rho x - y')^2 - (rho x - y)^2] = (1 + rho^2) - (1 - rho^2) = 2 rho^2 for each number, so I_CLUB = d rho^2 / v.
    With the true v = 1 - rho^2 that lies above the truth: CLUB is an upper bound. Both squares and v grow with scale^2,
    so the scale cancels until v is held.
    """
    low, high = variances
    true_variance = scale**2 * (1 - correlation**2)
    return size * scale**2 * correlation**2 / min(max(true_variance, low), high)


class ByClub(nn.Module):
    """CLUB as train.py uses it: the network learns the log-likelihood, and is read in evaluation mode."""

    def __init__(self, kind: type, size: int):
        super().__init__()
        self.network = kind(size)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.network.log_likelihood(x, y) / x.shape[1]

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        return self.network.mutual_information(x, y)


class ByBound(nn.Module):
    """A critic that learns the bound it is read by."""

    def __init__(self, bound: Callable[[Tensor], Tensor], size: int):
        super().__init__()
        self.critic, self.bound = Critic(size), bound

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.bound(self.critic(x, y))

    def estimate(self, x: Tensor, y: Tensor) -> Tensor:
        return self.bound(self.critic(x, y))


def make_estimators(size: int) -> dict[str, ByClub | ByBound]:
    clubs = {"CLUB, sampled": ByClub(SampledCLUB, size), "CLUB, unsampled": ByClub(CLUB, size)}
    return clubs | {name: ByBound(bound, size) for name, bound in BOUNDS.items()}


def train_and_read(
    information: float, size: int, seed: int, steps: int, batch: int, num_read: int,
    *, scale: float = 1.0, only: str | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """The estimates of `num_read` fresh batches by each estimator, after `steps` steps on other batches.

    y is multiplied by `scale`, which changes no mutual information. `only` names one estimator.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    correlation, estimators = correlation_of(information, size), make_estimators(size)
    estimators = {name: one for name, one in estimators.items() if only in (None, name)}
    optimisers = {name: torch.optim.Adam(one.parameters(), lr=LEARNING_RATE) for name, one in estimators.items()}
    for _ in range(steps):
        x, y = draw_pairs(batch, size, correlation, generator)
        for name, one in estimators.items():
            loss = one.loss(x, scale * y)
            optimisers[name].zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(one.parameters(), 5.0)
            optimisers[name].step()
    read: dict[str, list[float]] = {name: [] for name in estimators}
    with torch.inference_mode():
        for one in estimators.values():
            one.eval()
        for _ in range(num_read):
            x, y = draw_pairs(batch, size, correlation, generator)
            for name, one in estimators.items():
                read[name].append(float(one.estimate(x, scale * y)))
    return read


def summary_row(information: float, size: int, name: str, by_seed: list[list[float]]) -> dict[str, float | str]:
    """Mean over all, bias, deviation between batches (mean over seeds) and between the means of seeds."""
    means = [statistics.fmean(of_seed) for of_seed in by_seed]
    return {
        "size": size,
        "truth": information,
        "estimator": name,
        "mean": statistics.fmean(means),
        "bias": statistics.fmean(means) - information,
        "deviation_of_batches": statistics.fmean(statistics.stdev(of_seed) for of_seed in by_seed),
        "deviation_of_seeds": statistics.stdev(means) if len(means) > 1 else 0.0,
    }


def rows_of(information: float, size: int, flags: argparse.Namespace) -> list[dict[str, float | str]]:
    """A row an estimator, then the two expected values of the best CLUB."""
    read = [train_and_read(information, size, seed, flags.steps, flags.batch, flags.read) for seed in flags.seeds]
    rows = [summary_row(information, size, name, [of_seed[name] for of_seed in read]) for name in read[0]]
    correlation = correlation_of(information, size)
    for name, variances in (("CLUB, best q", (0.0, math.inf)), ("CLUB, best q, variance 1/e or more", VARIANCES)):
        expected = best_club(size, correlation, variances=variances)
        row = {"size": size, "truth": information, "estimator": name, "mean": expected, "bias": expected - information}
        rows.append(row | {"deviation_of_batches": 0.0, "deviation_of_seeds": 0.0})
    return rows


def scale_rows(size: int, flags: argparse.Namespace) -> list[dict[str, float]]:
    """What the sampled CLUB says of one truth when y is multiplied: by training, and at best."""
    rows, correlation = [], correlation_of(flags.scaled_information, size)
    for scale in flags.scales:
        read = train_and_read(flags.scaled_information, size, flags.seeds[0], flags.steps, flags.batch, flags.read,
                              scale=scale, only="CLUB, sampled")["CLUB, sampled"]  # fmt: skip
        best = best_club(size, correlation, scale, VARIANCES)
        rows.append({"size": size, "truth": flags.scaled_information, "scale": scale, "best": best,
                     "mean": statistics.fmean(read), "deviation_of_batches": statistics.stdev(read)})  # fmt: skip
    return rows


def scale_table(rows: list[dict[str, float]]) -> str:
    """Markdown: a scale a line."""
    head = f"| y times, I = {rows[0]['truth']:g}, d = {rows[0]['size']} | sampled CLUB, nats | best q within 1/e to e |"
    entry = [f"| {row['scale']:g} | {row['mean']:.2f} ± {row['deviation_of_batches']:.2f} | {row['best']:.2f} |"
            for row in rows]  # fmt: skip
    return "\n".join([head, "|---:|---:|---:|", *entry])


def table(rows: list[dict], size: int) -> str:
    """Markdown: an estimator a line, a truth a column; estimate ± deviation between batches."""
    of_size = [row for row in rows if row["size"] == size]
    truths = sorted({row["truth"] for row in of_size})
    lines = [f"| d = {size}, nats | {' | '.join(f'I = {truth:g}' for truth in truths)} |",
             "|---|" + "---:|" * len(truths)]  # fmt: skip
    for name in dict.fromkeys(row["estimator"] for row in of_size):
        cells = {row["truth"]: row for row in of_size if row["estimator"] == name}
        entry = [f"{cells[truth]['mean']:.1f}" for truth in truths]
        spreads = [cells[truth]["deviation_of_batches"] for truth in truths]
        entry = [f"{one} ± {spread:.1f}" if spread else one for one, spread in zip(entry, spreads, strict=True)]
        lines.append(f"| {name} | {' | '.join(entry)} |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Estimate against truth, one panel a size; bars are the deviation between batches."""
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(row["size"] for row in rows))
    figure = Figure(figsize=(5 * len(sizes) + 2.2, 4.2), layout="constrained")
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    for axes, size in zip(figure.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        for k, name in enumerate(names):
            of = [row for row in rows if row["size"] == size and row["estimator"] == name]
            place = [row["truth"] + 0.12 * (k - len(names) / 2) for row in of]  # beside each other
            style = {"linestyle": ":", "marker": "x", "color": "grey" if "1/e" in name else "black"}
            style = style if "best" in name else {"marker": "o", "markersize": 4, "capsize": 2}
            errors = [row["deviation_of_batches"] for row in of]
            axes.errorbar(place, [row["mean"] for row in of], yerr=errors, label=name, linewidth=1.2, **style)
        truths = sorted({row["truth"] for row in rows})
        axes.plot(truths, truths, color="black", linewidth=2.5, alpha=0.3, label="truth")
        axes.set(title=f"d = {size}", xlabel="true mutual information, nats", ylabel="estimate, nats")
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], -15))  # NWJ may fall far below
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right center")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[20, 512])
    parser.add_argument("--information", nargs="+", type=float, default=[0, 2, 5, 10, 20], help="nats")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--read", type=int, default=30, help="batches to read the trained estimators on")
    parser.add_argument(
        "--scales", nargs="*", type=float, default=[0.1, 0.3, 1, 3, 10], help="of y, for CLUB once more"
    )
    parser.add_argument("--scaled-information", type=float, default=10, help="nats")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    flags = parser.parse_args()
    rows = []
    for size in flags.sizes:
        for information in flags.information:
            rows += rows_of(information, size, flags)
        print(table(rows, size), end="\n\n", flush=True)
    scaled = scale_rows(flags.sizes[-1], flags) if flags.scales else []
    print(scale_table(scaled) if scaled else "", flush=True)
    if flags.plot:
        plot(rows, flags.plot)
    settings = {name: getattr(flags, name) for name in ("steps", "batch", "seeds", "read")}
    print(json.dumps({"benchmark": "estimators", **settings, **machine(torch.device("cpu")), "rows": rows,
                      "scaled": scaled}))  # fmt: skip


if __name__ == "__main__":
    main()
