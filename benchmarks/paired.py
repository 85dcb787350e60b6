"""Tables of several variants over the same seeds (see evaluation/groups/seeds.py)."""


def tables(summary: dict[str, dict[str, dict]], figures: dict[str, tuple[str, int]]) -> str:
    """Two Markdown tables, mean ± deviation and paired difference ± standard error; `figures`: name -> title, decimals.

    A star marks a difference whose 95 % interval leaves 0 out; the exact sign-flip p-value follows.
    """
    head = "\n".join((f"| variant | {' | '.join(title for title, _ in figures.values())} |",
                      "|---|" + "---:|" * len(figures)))  # fmt: skip
    levels, differences = [head], [head]
    for variant, of_variant in summary.items():
        cells, paired_cells = [], []
        for figure, (_, decimals) in figures.items():
            row = of_variant.get(figure, {})
            cells.append(_plus_minus(row.get("spread"), "deviation", decimals))
            paired_cells.append(_plus_minus(row.get("difference"), "standard_error", decimals, "+"))
        levels.append(f"| {variant} | {' | '.join(cells)} |")
        if any("difference" in row for row in of_variant.values()):
            differences.append(f"| {variant} | {' | '.join(paired_cells)} |")
    words = "Paired differences, ± standard error, exact sign-flip p-value"
    return "\n".join(levels) + f"\n\n{words}:\n\n" + "\n".join(differences)


def _plus_minus(row: dict | None, error: str, decimals: int, sign: str = "") -> str:
    if row is None:
        return ""
    spread_of_it = "" if row[error] is None else f" ± {row[error]:.{decimals}f}"
    p_value = "" if row.get("p_value") is None else f" (p {row['p_value']:.2g})"
    return f"{row['mean']:{sign}.{decimals}f}{spread_of_it}{'*' if row.get('is_beyond_chance') else ''}{p_value}"
