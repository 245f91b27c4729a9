"""Tables of a summary: the Dice of each target, a row each, and the methods beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from SDFSMISLib.evaluation.metrics import METRICS
from SDFSMISLib.evaluation.results import Mean, Summary

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["markdown_table", "rich_table"]


def markdown_table(summaries: Sequence[Summary], measure: str = next(iter(METRICS))) -> str:
    """The table as Markdown, ending in a line break."""
    header, body = _cells(summaries, measure)
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    lines += [[f"**{cell}**" if strong and cell else cell for cell in cells] for cells, strong in body]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def rich_table(summaries: Sequence[Summary], measure: str = next(iter(METRICS)), title: str | None = None) -> Table:
    """The table for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    header, body = _cells(summaries, measure)
    table = Table(title=title)
    for place, name in enumerate(header):
        table.add_column(escape(name), justify="left" if place < 2 else "right")
    for cells, strong in body:
        table.add_row(*map(escape, cells), style="bold" if strong else None, end_section=strong)
    return table


def _cells(summaries: Sequence[Summary], measure: str) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """(header, [(cells, is a mean of means)]): each group's targets and their mean, at last the overall mean."""
    runs = {(summary.protocol, summary.shots) for summary in summaries}
    header = ["group", "target", "tasks"]
    for summary in summaries:
        where = f" ({summary.protocol}, {summary.shots})" if len(runs) > 1 else ""
        header.append(summary.method + where)
    body: list[tuple[list[str], bool]] = []
    for group in dict.fromkeys(group for summary in summaries for group in summary.groups):
        names = dict.fromkeys(target for summary in summaries for target in summary.targets if target[0] == group)
        for name in names:
            body.append((_line(group, name[1], [summary.targets.get(name) for summary in summaries], measure), False))
        body.append((_line(group, "mean", [summary.groups.get(group) for summary in summaries], measure), True))
    if len({group for summary in summaries for group in summary.groups}) > 1:
        body.append((_line("all", "mean of groups", [summary.overall for summary in summaries], measure), True))
    return header, body


def _line(group: str, target: str, means: Sequence[Mean | None], measure: str) -> list[str]:
    counts = dict.fromkeys(str(mean.tasks) for mean in means if mean)  # more than one where a run is not complete
    values = [mean.values[measure] if mean else math.nan for mean in means]
    return [group, target, "/".join(counts), *("–" if math.isnan(value) else f"{value:.3f}" for value in values)]
