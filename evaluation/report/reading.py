"""results.json read for the report: parts that are absent, or hold a reason only, become sentences, never figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from evaluation.report.blocks import Block, Heading

Tree: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Tested:
    """One setting, and the results of each model that ran on it."""

    name: str
    title: str
    benchmark: str  # as published figures name it, "" for a set of which there are none
    of_models: Sequence[tuple[str, Tree]]
    drawn: bool = False  # faces drawn by program


def branch(tree: Any, *keys: str) -> Tree:
    """The dict below these keys; empty where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def items(tree: Any, key: str) -> list[Any]:
    """The list at this key; empty where there is none."""
    value = tree.get(key) if isinstance(tree, dict) else None
    return list(value) if isinstance(value, list | tuple) else []


def dicts(tree: Any, key: str) -> list[Tree]:
    """The dicts in the list at this key."""
    return [value for value in items(tree, key) if isinstance(value, dict)]


def number(value: Any) -> float | int | None:
    """The value where it is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def figure(tree: Any, key: str) -> float | int | None:
    """The finite number at this key."""
    return number(branch(tree).get(key))


def columns(tree: Any, *keys: str) -> list[list[float | int | None]]:
    """The lists of numbers at these keys, cut to the shortest."""
    found = [[number(value) for value in items(tree, key)] for key in keys]
    length = min(map(len, found))
    return [values[:length] for values in found]


def words(value: Any, otherwise: str) -> str:
    """The value where it is a text that says something."""
    return value if isinstance(value, str) and value.strip() else otherwise


def model_names(report: Tree) -> list[tuple[str, Tree]]:
    """Each model's name and what the report holds of it."""
    return [(words(model.get("name"), f"model {i}"), model) for i, model in enumerate(dicts(report, "models"), 1)]


def settings_of(report: Tree) -> list[Tested]:
    """The settings that any model ran on, in the order in which they come."""
    titles: dict[str, str] = {}
    benchmarks: dict[str, str] = {}
    results: dict[str, list[tuple[str, Tree]]] = {}
    for model, entry in model_names(report):
        for name, result in branch(entry, "results").items():
            titles.setdefault(name, words(branch(result).get("title"), name))
            benchmarks.setdefault(name, words(branch(result).get("benchmark"), ""))
            results.setdefault(name, []).append((model, branch(result)))
    return [
        Tested(
            name, titles[name], benchmarks[name], of_models, any(result.get("drawn") is True for _, result in of_models)
        )
        for name, of_models in results.items()
    ]


def reason_of(tree: Any, *keys: str) -> str:
    """The first reason on the way down these keys."""
    for depth in range(len(keys) + 1):
        reason = branch(tree, *keys[:depth]).get("reason")
        if isinstance(reason, str):
            return reason
    return ""


def gather(tested: Tested, what: str, *keys: str) -> tuple[list[tuple[str, Tree]], list[str]]:
    """The part below these keys of each model that has it, and a sentence for each that has not."""
    having, lacking = [], []
    for model, result in tested.of_models:
        part = branch(result, *keys)
        if part and set(part) != {"reason"}:
            having.append((model, part))
            continue
        reason = reason_of(result, *keys)
        lacking.append((model, f"no {what}" + (f": {reason}" if reason else " in these results")))
    if not having and len({text for _, text in lacking}) == 1:  # what no model has is said once
        return having, [sentence(lacking[0][1][0].upper() + lacking[0][1][1:])]
    return having, [sentence(f"{model}: {text}") for model, text in lacking]


def sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def each(tested: Sequence[Tested], blocks_of) -> list[Block]:
    """The blocks of each setting below its title."""
    if not tested:
        return ["No benchmark ran, so there is nothing to show."]
    return [block for one in tested for block in (Heading(one.title), *blocks_of(one))]


def interval(tree: Tree, key: str) -> str | None:
    """The interval of a figure in words."""
    low, high = figure(tree, f"{key}_low"), figure(tree, f"{key}_high")
    return None if low is None or high is None else f"{low:.2f} to {high:.2f}"
