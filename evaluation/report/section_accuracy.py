"""The report's sections on accuracy: verification, score histograms, identification, worst errors."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.report.blocks import Block, Cell, Curve, Histogram, Pair, Pairs, Plot, Table
from evaluation.report.reading import Tested, Tree, branch, columns, dicts, figure, gather, interval, sentence, words

RATES = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6")

# --------------------------------------------------------------------------------------------------------- verification


def verification(one: Tested) -> list[Block]:
    """ROC and DET of all models, and TAR at FAR with intervals."""
    having, lacking = gather(one, "verification curve", "analysis", "verification")
    if not having:
        return lacking
    roc, det = [], []
    for model, part in having:
        far, tar = columns(branch(part, "curve"), "roc_far_percent", "roc_tar_percent")
        shown = [i for i, rate in enumerate(far) if rate is not None and rate > 0]  # the axis is logarithmic
        roc.append(Curve(model, [far[i] for i in shown], [tar[i] for i in shown]))
        det.append(Curve(model, *columns(branch(part, "curve"), "det_far_percent", "det_frr_percent")))
    start = min((curve.x[0] for curve in roc if len(curve.x)), default=100.0)
    diagonal = [100.0 * (start / 100.0) ** (1 - i / 40) for i in range(41)]
    roc.append(Curve("chance", diagonal, diagonal, is_reference=True))
    blocks: list[Block] = [
        Plot(f"{one.title}: ROC", "false accept rate (FAR), %", "true accept rate (TAR), %", roc, x_log=True),
        Plot(f"{one.title}: DET", "false accept rate (FAR), %", "false reject rate, %", det, x_log=True, y_log=True),
        accept_table(one, having),
        *lacking,
    ]
    perfect = [curve.label for curve in det if not len(curve.x)]
    return blocks + [f"{label}: no threshold has both kinds of error, so there is no DET." for label in perfect]


def accept_table(one: Tested, having: Sequence[tuple[str, Tree]]) -> Table:
    rows: list[list[Cell]] = []
    reasons: dict[str, None] = {}
    for model, part in having:
        result = dict(one.of_models)[model]
        figures, sure = branch(part, "figures"), branch(result, "analysis", "intervals")
        for rate in RATES:
            key = f"tar_at_far_{rate}_percent"
            reason = figures.get(f"tar_at_far_{rate}_reason") or sure.get(f"{key}_interval_reason")
            if isinstance(reason, str):
                reasons[reason] = None
            if figure(figures, key) is None:
                continue  # the note says why
            threshold = figure(figures, f"threshold_at_far_{rate}")
            shown = None if threshold is None else f"{threshold:.4f}"
            rows.append([model, f"FAR {rate}", figure(figures, key), interval(sure, key), shown])
    genuine, impostor = (figure(branch(having[0][1], "figures"), f"num_{kind}") for kind in ("genuine", "impostor"))
    counted = "" if genuine is None or impostor is None else f"{genuine:,} genuine and {impostor:,} impostor pairs. "
    note = counted + (f"What is missing: {'; '.join(reasons)}." if reasons else "")
    header = ["model", "rate", "TAR %", "95 % interval", "threshold, cosine"]
    return Table(f"{one.title}: true accepts at false accept rates", header, rows, note.strip())


def histograms(one: Tested) -> list[Block]:
    """How the scores of both kinds of pairs are spread, for each model."""
    having, lacking = gather(one, "histogram", "analysis", "verification", "histogram")
    blocks: list[Block] = []
    for model, part in having:
        edges = columns(part, "bin_edges")[0]
        counts = columns(part, "genuine_counts", "impostor_counts")
        is_whole = len(edges) == len(counts[0]) + 1 > 1 and None not in [*edges, *counts[0], *counts[1]]
        title = f"{one.title}: {model}"
        blocks.append(
            Histogram(title, "cosine", edges, *counts) if is_whole else f"{title}: the histogram is not whole."
        )
    return [*blocks, *lacking]


# ------------------------------------------------------------------------------------------------------- identification


def identification(one: Tested) -> list[Block]:
    """CMC to rank 100 with chance, and open-set identification."""
    having, lacking = gather(one, "ranks", "analysis", "cmc")
    blocks: list[Block] = []
    if having:
        blocks += cmc(one, having)
    strangers, no_strangers = gather(one, "open-set figures", "analysis", "open_set")
    if strangers:
        blocks.append(open_set_table(one, strangers))
    return [*blocks, *lacking, *no_strangers]


def cmc(one: Tested, having: Sequence[tuple[str, Tree]]) -> list[Block]:
    curves = [ranks(model, part) for model, part in having]
    curves += [ranks("chance", branch(part, "chance"), True) for _, part in having[:1] if branch(part, "chance")]
    counted = []
    for model, part in having:
        counts = {name: figure(part, f"num_{name}") for name in ("probes", "gallery", "distractors")}
        named = {"probes": "probes", "gallery": "pictures to search", "distractors": "distractors"}
        known = ", ".join(f"{counts[name]:,} {named[name]}" for name in named if counts[name] is not None)
        counted.append((model, known))
    alike = len({known for _, known in counted}) == 1
    said = [counted[0][1]] if alike else [f"{model}: {known}" for model, known in counted]
    return [
        Plot(f"{one.title}: identification", "rank", "found up to this rank, %", curves, kind="steps", x_log=True),
        *(sentence(text) for text in said if text),
    ]


def ranks(label: str, part: Tree, is_reference: bool = False) -> Curve:
    (values,) = columns(part, "cmc_percent")
    return Curve(label, list(range(1, len(values) + 1)), values, is_reference=is_reference)


def open_set_table(one: Tested, having: Sequence[tuple[str, Tree]]) -> Table:
    rates = RATES[:3]
    rows = [
        [
            model,
            figure(part, "rank1_percent"),
            *(figure(part, f"dir_at_far_{rate}_percent") for rate in rates),
            figure(part, "num_known_probes"),
            figure(part, "num_strangers"),
        ]
        for model, part in having
    ]
    header = [
        "model",
        "rank-1 %, no threshold",
        *(f"DIR % at FAR {rate}" for rate in rates),
        "known probes",
        "strangers",
    ]
    note = "DIR: known people found at rank 1 above a threshold that lets this share of strangers pass, or fewer."
    return Table(f"{one.title}: open set, half of the people are strangers", header, rows, note)


# --------------------------------------------------------------------------------------------------------- worst errors

ERRORS = {
    "false_matches": "false matches, two people who look most alike to the model",
    "false_non_matches": "false non-matches, one person who looks least alike",
}


def worst_errors(one: Tested) -> list[Block]:
    """The pairs a model errs most on."""
    having, lacking = gather(one, "named errors", "analysis", "errors")
    blocks: list[Block] = []
    for model, part in having:
        for kind, what in ERRORS.items():
            pairs = [pair_of(entry) for entry in dicts(part, kind)]
            if pairs:
                blocks.append(Pairs(f"{one.title}, {model}: {what}", one.name, pairs))
            else:
                blocks.append(f"{model}: no {kind.replace('_', ' ').replace('non ', 'non-')} are named.")
    return [*blocks, *lacking]


def pair_of(entry: Tree) -> Pair:
    names = tuple(words(entry.get(f"name_{side}"), "not stated") for side in "ab")
    ages = tuple(figure(entry, f"age_{side}") for side in "ab")
    return Pair((names[0], names[1]), (ages[0], ages[1]), figure(entry, "cosine"))
