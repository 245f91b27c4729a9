"""`sdfsmis adapt`: weights learn from scans without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from SDFSMISLib.cohort_list import find_scans
from SDFSMISLib.console import duration, progress, say, waiting

__all__ = ["EXAMPLE", "adapt"]

EXAMPLE = "Example:\n\n  sdfsmis adapt --scans folder --output adapted\n\n  sdfsmis segment --model adapted ..."


def adapt(
    scans: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            help="Scans without labels, of the kind that is to be segmented: a folder of NIfTI, NRRD or MHA files, or "
            "of DICOM folders, or a list (.txt, .csv) of them.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="The pipeline folder to make, for --model. One that was begun goes on.")
    ],
    model: Annotated[str, typer.Option(metavar="M", help="Weights to begin with, as in segment.")] = "built-in",
    minutes: Annotated[float, typer.Option(metavar="N", help="Time to take in all.")] = 10.0,
    device: Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Let weights learn from your own scans, without any label.

    They learn from supervoxels, parts that look alike, and are measured on supervoxels that were held out. The weights
    that do best there are kept: those at the start, where none do better. The report shows slices of the scans; the
    weights do not hold any.
    """
    with waiting("Starting"):
        from SDFSMISLib.training.adaptation import adapt as run_adaptation

    found = find_scans([scans])
    with progress("Adapting", 1) as advance:
        made = run_adaptation(found, output, model, minutes, device, advance)
    say(f"Learned {made.steps} steps from {made.scans} scans in {duration(made.seconds)}.")
    if made.improved:
        typer.echo(f"Held-out supervoxels: soft Dice {made.start.mean:.3f} before, {made.kept.mean:.3f} after.")
    else:
        typer.echo(
            f"Nothing better was learned (soft Dice {made.start.mean:.3f} on held-out supervoxels): the weights are "
            "those at the start."
        )
    typer.echo(f"Wrote the pipeline folder {made.folder} and, in it, report.html")
