"""The report's sections in their order: the one place to add one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from evaluation.report.blocks import Block, Terms
from evaluation.report.reading import Tested, Tree, each, settings_of
from evaluation.report.section_accuracy import histograms, identification, verification, worst_errors
from evaluation.report.section_age import AGE_GAP_WORDS, age_gap, age_leak
from evaluation.report.section_false_matches import FALSE_MATCH_WORDS, false_matches
from evaluation.report.section_groups import first_of_groups
from evaluation.report.section_summary import did_not_run, side_by_side, summary


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    blocks: Sequence[Block]


GLOSSARY = (
    ("embedding", "The numbers that a model gives for a face, scaled to length 1."),
    ("cosine, score", "How alike two embeddings are: 1 is the same, 0 is unrelated."),
    ("genuine, impostor", "A pair of pictures of one person, and a pair of two people."),
    ("concatenate, add", "Two ways to join the embeddings of a picture and its mirror image."),
    ("sum", "InsightFace's way for its verification sets: views are added before they are scaled."),
    (
        "InsightFace accuracy",
        "The accuracy that InsightFace's own evaluation prints of a list of pairs: views added, thresholds of the "
        "distance, mean +- standard deviation over ten folds. Papers report LFW, CFP-FP, AgeDB-30 and CALFW by it.",
    ),
    ("FAR", "False accept rate: the share of impostor pairs at or above the threshold. 1e-2 is one in a hundred."),
    ("FMR", "False match rate: the FAR of pairs of certain ages, at a threshold that is chosen for all ages together."),
    ("TAR", "True accept rate: the share of genuine pairs at or above the threshold."),
    (
        "ROC, DET",
        "TAR, or the share of genuine pairs rejected, at every FAR. Good curves are high in a ROC, low in a DET.",
    ),
    ("AUC", "How often a genuine pair scores above an impostor pair; 50 % is chance."),
    ("EER", "The error where both kinds of error are equal; lower is better."),
    (
        "rank-1, CMC",
        "How often the picture most like a probe is of the same person, and how often one among the first k is.",
    ),
    ("leave-one-out", "Each picture is searched among all others."),
    ("open set, DIR", "A search that may also answer: nobody. DIR is the share of known people who are found."),
    ("distractors", "Pictures of strangers among those that are searched."),
    (
        "95 % interval",
        "How far a figure moves with other people like these. It says nothing of other cameras or countries.",
    ),
    ("age gap", "Years between the two pictures of a pair."),
    (
        "probe of age",
        "A reader trained to predict the age from embeddings, tested on people it has not seen: linear ones (ridge and "
        "logistic regression), and one that is not linear (kernel ridge regression).",
    ),
    (
        "permuted ages",
        "The same reader where ages were dealt anew to the pictures: it should be no better than chance.",
    ),
    ("CLUB, nats", "An estimate of the information that two embeddings share, in natural units."),
    ("n/a", "Not available: it was not measured, or there are too few pictures for it."),
)

BlocksOf = Callable[[Tree, Sequence[Tested]], Iterable[Block]]  # results.json, and its results by setting
SECTIONS: dict[str, tuple[str, BlocksOf]] = {  # id: title, and what the section holds
    "summary": ("Summary", summary),
    "side-by-side": ("Models side by side", lambda report, tested: side_by_side(report)),
    "verification": ("Verification", lambda report, tested: each(tested, verification)),
    "score-histograms": ("Score histograms", lambda report, tested: each(tested, histograms)),
    "identification": ("Identification", lambda report, tested: each(tested, identification)),
    "age-gap": ("Age gap", lambda report, tested: [AGE_GAP_WORDS, *each(tested, age_gap)]),
    "false-matches": (
        "False matches by age",
        lambda report, tested: [FALSE_MATCH_WORDS, *each(tested, false_matches)],
    ),
    "age-leak": ("Age leak", lambda report, tested: each(tested, age_leak)),
    "worst-errors": ("Worst errors", lambda report, tested: each(tested, worst_errors)),
    "did-not-run": ("What did not run", lambda report, tested: did_not_run(report)),
    "how-to-read": ("How to read this", lambda report, tested: [Terms(GLOSSARY)]),
}
OF_ALL_MODELS = ("summary", "side-by-side", "did-not-run", "how-to-read")  # the others draw each model
OF_FIRST_MODELS = "The first model of each group is shown; results.json holds all of them."


def sections_of(report: Tree) -> list[Section]:
    """All sections in their order, also those that only say what is missing."""
    tested = settings_of(report)
    drawn = first_of_groups(report, tested)
    sections = []
    for name, (title, blocks_of) in SECTIONS.items():
        if name in OF_ALL_MODELS or drawn == tested:
            sections.append(Section(name, title, list(blocks_of(report, tested))))
        else:
            sections.append(Section(name, title, [OF_FIRST_MODELS, *blocks_of(report, drawn)]))
    return sections
