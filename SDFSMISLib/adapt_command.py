"""`sdfsmis adapt`: weights learn from scans without labels, here or on a server."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from SDFSMISLib.cohort.scan_list import find_scans
from SDFSMISLib.console import duration, progress, say, waiting
from SDFSMISLib.errors import InputError
from SDFSMISLib.segment_command import CERTIFICATE, TOKEN

if TYPE_CHECKING:
    from SDFSMISLib.client import LearnedModel

__all__ = ["EXAMPLE", "adapt"]

EXAMPLE = (
    "Examples:\n\n"
    "  sdfsmis adapt --scans folder --output adapted\n\n"
    "  sdfsmis segment --model adapted ...\n\n"
    "  sdfsmis adapt --scans folder --server http://computer:7861 --name ours\n\n"
    "  sdfsmis segment --server http://computer:7861 --model ours ..."
)
BUILT_IN, AUTO = "built-in", "auto"
ON_A_SERVER = "On a server"  # where the help shows the options of segment that are taken over


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
        Path | None,
        typer.Option(metavar="DIR", help="The pipeline folder to make, for --model. One that was begun goes on."),
    ] = None,
    model: Annotated[str, typer.Option(metavar="M", help="Weights to begin with, as in segment.")] = BUILT_IN,
    minutes: Annotated[
        float, typer.Option(metavar="N", help="Time to take in all; a few steps are learned whatever time they take.")
    ] = 10.0,
    device: Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N.")] = AUTO,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="In place of --output: learn on a backend (sdfsmis serve --adaptations); whole scans are sent to it, "
            "kept there while they are learned from, and then deleted.",
            rich_help_panel=ON_A_SERVER,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What the backend is to call the model, for segment --model.",
            rich_help_panel=ON_A_SERVER,
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Where it has a model of this name that was learned from something else: forget that one.",
            rich_help_panel=ON_A_SERVER,
        ),
    ] = False,
    token: Annotated[str | None, TOKEN] = None,
    server_certificate: Annotated[Path | None, CERTIFICATE] = None,
) -> None:
    """Let weights learn from your own scans, without any label.

    They learn from supervoxels, parts that look alike, and are measured on supervoxels that were held out. The weights
    that do best there are kept: those at the start, where none do better. The report shows slices of the scans; the
    weights do not hold any.
    """
    if server is None:
        if output is None:
            raise InputError("Neither --output nor --server was given; name a folder to make, or a server.")
        if name is not None or replace or token is not None or server_certificate is not None:
            raise InputError("--name, --replace, --token and --server-certificate belong to a server; name --server.")
        _here(scans, output, model, minutes, device)
        return
    if output is not None or model != BUILT_IN or device != AUTO:
        raise InputError("--output, --model and --device do not go with --server, whose model learns there.")
    if name is None:
        raise InputError("--name is missing: what is the server to call the model?")
    _there(scans, server, token, server_certificate, name, minutes, replace)


def _here(scans: Path, output: Path, model: str, minutes: float, device: str) -> None:
    with waiting("Starting"):
        from SDFSMISLib.training.adaptation import adapt as run_adaptation

    found = find_scans([scans])
    with progress("Adapting", 1) as advance:
        made = run_adaptation(found, output, model, minutes, device, advance)
    say(_learned(made.steps, made.scans, made.seconds))
    typer.echo(_worth(made.improved, made.start.mean, made.kept.mean))
    typer.echo(f"Wrote the pipeline folder {made.folder} and, in it, report.html")


def _there(
    scans: Path, server: str, token: str | None, certificate: Path | None, name: str, minutes: float, replace: bool
) -> None:
    from SDFSMISLib.client import BackendError, Client, ModelMissing, NameTaken
    from SDFSMISLib.client.backend_process import TOKEN_VARIABLE
    from SDFSMISLib.volume import Volume

    ca_file = None if certificate is None else str(certificate)
    client = Client(server, token or os.environ.get(TOKEN_VARIABLE), ca_file=ca_file)
    found = find_scans([scans])
    sources = [partial(Volume.read, path) for path in found]

    def learn() -> LearnedModel:
        with progress("Adapting", 1) as advance:
            return client.learn(sources, name, minutes, on_progress=lambda far: advance(far.done, far.total, far.text))

    try:
        try:
            made = learn()
        except NameTaken as error:
            if not replace:
                raise InputError(f"{error} With --replace it is forgotten.") from error
            with suppress(ModelMissing):  # somebody else was faster
                client.forget_model(name)
            made = learn()
    except KeyboardInterrupt:
        say("The server ends what it did for this; scans stay there for an hour at most. The same command goes on.")
        raise
    except BackendError as error:
        if error.passing:
            say("The same command goes on where this ended.")
        raise
    for why in made.skipped:
        say(f"Warning: {why}")
    say(_learned(made.steps, made.scans, made.seconds))
    typer.echo(_worth(made.improved, made.before, made.after))
    typer.echo(f"Segment with it: sdfsmis segment --server {client.url} --model {_quoted(name)} ...")


def _learned(steps: int, scans: int, seconds: float) -> str:
    return f"Learned {steps} steps from {scans} scan{'s' * (scans > 1)} in {duration(seconds)}."


def _worth(improved: bool, before: float, after: float) -> str:
    if improved:
        return f"Held-out supervoxels: soft Dice {before:.3f} before, {after:.3f} after."
    return (
        f"Nothing better was learned (soft Dice {before:.3f} on held-out supervoxels): the weights are those at the "
        "start."
    )


def _quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name
