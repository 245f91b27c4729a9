"""The report of an adaptation: a page that stands alone, with curves, and pictures before and after."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from SDFSMISLib.atomic import atomic_output
from SDFSMISLib.evaluation.report import STYLE
from SDFSMISLib.evaluation.tables import Table
from SDFSMISLib.training.adaptation_measure import Score
from SDFSMISLib.training.batch import EpisodeBatch
from SDFSMISLib.training.pictures import episode_picture

__all__ = ["write_adaptation_report", "write_before_after"]

KINDS = {
    "propagate": "from slice to slice within a scan",
    "cross": "a painted slice of another scan",
}
NOTE = (
    "Measured on supervoxels that were held out of learning, always the same ones. Within a scan: painted on one slice "
    "and carried to the others as sdfsmis segment does it, soft Dice. Across scans: single slices, soft Dice, "
    "and for those without the target how little was found. It tells whether weights have got better at such tasks; "
    "how good they are at organs only scans with labels tell (sdfsmis evaluate)."
)
SUPERVOXEL_NOTE = (
    "What is learned from: a slice of each of some scans, large supervoxels on it, and smaller ones. Colours tell "
    "neighbours apart. The better they follow what there is to see, the more is learned."
)
PICTURE_NOTE = (
    "Each row is an episode: painted slices with their masks, the query with its true mask (yellow), what the weights "
    "at the start find, and what the kept ones find (blue)."
)


def write_before_after(batch: EpisodeBatch, before: torch.Tensor, after: torch.Tensor, path: Path) -> None:
    """A PNG of episodes with two answers (B, R, R), probabilities."""
    side = batch.query_images.shape[-1]
    picture = np.concatenate([episode_picture(batch, before), episode_picture(batch, after)[:, -side:]], axis=1)
    with atomic_output(path, ".png") as part:
        Image.fromarray(picture).save(part)


def write_adaptation_report(
    folder: Path,
    provenance: Mapping[str, Any],
    skipped: Sequence[str],
    scores: Mapping[int, Score],
    best: int,
    log: Path,
) -> Path:
    """Writes `report.html` and `pictures/curves.png` into `folder`, where the pictures of supervoxels and of episodes
    are already.

    Args:
        provenance: what is told of the run, by name.
        skipped: why scans were left out.
        scores: by step, 0 the start.
        best: the step whose weights were kept.
        log: the training's `log.jsonl`.
    """
    pictures = folder / "pictures"
    _draw_curves(scores, best, _losses(log), pictures / "curves.png")
    about = [[name, str(value)] for name, value in provenance.items() if not isinstance(value, (dict, list))]
    left_out = "".join(f"<li>{escape(why)}</li>" for why in skipped)
    shown = "".join(_figure(pictures / f"{kind}.png", text) for kind, text in KINDS.items() if kind in scores[0].kinds)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Adaptation, SDFSMIS</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><h1>Adaptation</h1>'
        f"{_verdict(scores, best)}<p class=note>{escape(NOTE)}</p>{_figure(pictures / 'curves.png', 'Curves')}"
        f"<h2>Before and after</h2><p class=note>{escape(PICTURE_NOTE)}</p>{shown}"
        f"<h2>Supervoxels</h2><p class=note>{escape(SUPERVOXEL_NOTE)}</p>"
        f"{_figure(pictures / 'supervoxels.png', 'Supervoxels')}"
        f"<h2>About</h2>{Table(['what', 'value'], about, 2).html()}"
        f"{f'<h2>Scans that were left out</h2><ul>{left_out}</ul>' if left_out else ''}"
        "<p class=note>The pictures show slices of the scans. Not a medical device.</p></body></html>\n"
    )
    with atomic_output(folder / "report.html", ".html") as part:
        part.write_text(page, encoding="utf-8")
    return folder / "report.html"


def _verdict(scores: Mapping[int, Score], best: int) -> str:
    """What is kept, and what it reaches."""
    start, kept = scores[0], scores[best]
    if not best:
        text = "No weights were better than those at the start, which are given back unchanged."
    else:
        text = f"The weights of step {best} are kept: {start.mean:.3f} → {kept.mean:.3f}."
    rows = [[KINDS[kind], f"{start.kinds[kind]:.3f}", f"{value:.3f}"] for kind, value in kept.kinds.items()]
    return f"<p>{text}</p>{Table(['held-out supervoxels', 'start', 'kept'], rows, 1).html()}"


def _losses(log: Path) -> list[tuple[int, float]]:
    """(step, loss) of the training; empty where nothing was learned."""
    if not log.exists():
        return []
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [(int(line["step"]), float(line["loss"])) for line in lines if "loss" in line]


def _draw_curves(scores: Mapping[int, Score], best: int, losses: list[tuple[int, float]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = sorted(scores)
    for kind in scores[0].kinds:
        left.plot(steps, [scores[step].kinds[kind] for step in steps], marker="o", markersize=3, label=KINDS[kind])
    left.plot(steps, [scores[step].mean for step in steps], color="black", label="mean")
    left.axvline(best, color="grey", linestyle="--", linewidth=1, label="kept")
    left.set(title="Held-out supervoxels", xlabel="step", ylabel="soft Dice")
    left.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    right.plot([step for step, _ in losses], [loss for _, loss in losses], color="black")
    right.set(title="Training, kinds as they came", xlabel="step", ylabel="loss")
    with atomic_output(path, ".png") as part:
        FigureCanvasAgg(figure).print_png(str(part))


def _figure(path: Path, title: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">'
    return f"<figure><figcaption>{escape(title)}</figcaption>{image}</figure>"
