"""Box plots: how a measure spreads over the cases, for each target and method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from SDFSMISLib.evaluation.results import Row
from SDFSMISLib.images.files import atomic_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["box_plot"]

COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
HEIGHT, BOX, GAP, NARROWEST = 4.0, 0.2, 0.25, 6.0  # inches: the figure, a box and what is between targets, the figure
DOTS_PER_INCH = 110
SHARES = ("dice", "nsd")  # measures from 0 to 1


def box_plot(rows: Sequence[Row], measure: str, path: Path, title: str) -> Path:
    """Draws a box (quartiles, whiskers to 1.5 times their range) and the cases as dots for each target and method.

    Targets and methods come in the order of ``rows``; what is not defined is left out. A PNG, whole or not at all;
    returns its path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    targets = list(dict.fromkeys(row.target for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(methods))]
    step = len(methods) * BOX + GAP  # inches from target to target
    width = max(len(targets) * step + 1, NARROWEST)
    figure = Figure(figsize=(width, HEIGHT), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    for number, (method, colour) in enumerate(zip(methods, colours, strict=True)):
        for place, target in enumerate(targets):
            values = [row.measure(measure) for row in rows if (row.method, row.target) == (method, target)]
            centre = place * step + (number - (len(methods) - 1) / 2) * BOX
            _box(axes, [value for value in values if not math.isnan(value)], centre, colour)
    axes.set_xticks([place * step for place in range(len(targets))], [_literal(target) for target in targets])
    axes.tick_params(axis="x", rotation=30 if len(targets) > 4 else 0)
    axes.set_xlim(-step / 2, (len(targets) - 0.5) * step)
    if measure in SHARES:
        axes.set_ylim(-0.02, 1.02)
    axes.grid(axis="y", alpha=0.3)
    axes.set_title(title, fontsize=10, parse_math=False)
    handles = [Patch(color=colour, label=_literal(name)) for name, colour in zip(methods, colours, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(methods), 4), frameon=False, fontsize=8)
    with atomic_output(path, path.suffix) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
    return path


def _box(axes: Axes, values: Sequence[float], centre: float, colour: str) -> None:
    line = {"color": colour, "linewidth": 1.2}
    parts = axes.boxplot(
        [values],
        positions=[centre],
        widths=0.7 * BOX,
        patch_artist=True,
        showfliers=False,
        manage_ticks=False,
        medianprops={"color": "black"},
        boxprops={"edgecolor": colour, "linewidth": 1.2},
        whiskerprops=line,
        capprops=line,
    )
    parts["boxes"][0].set_facecolor(f"{colour}55")
    axes.plot([centre] * len(values), values, ".", color=colour, markersize=3)


def _literal(name: str) -> str:
    """A name in which matplotlib finds no formula."""
    return name.replace("$", r"\$")
