"""The options of `sdfsmis segment` with their help; `segment_run` does the work."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from SDFSMISLib.console import waiting
from SDFSMISLib.options import BUILT_IN, Region, RunOptions, Strategy

__all__ = ["EXAMPLES", "ManyValues", "command_line", "segment"]

SECRET, HIDDEN = "--token", "***"  # the value of this option is stored nowhere

EXAMPLES = """Examples, each on one line:

One painted slice, or several in any view, to the whole scan:

  sdfsmis segment --support ct.nrrd --mask painted.nrrd --output liver.seg.nrrd

Label 2 of a full labelmap, of which only slice 40 is used, on two other scans:

  sdfsmis segment --support a.nii --mask labels.nii --slice 40 --label 2
    --query b.nii c.nii --output results/

Painted today, used next month:

  sdfsmis segment --support ct.nrrd --mask painted.nrrd --output liver.seg.nrrd
    --save-support-set liver.safetensors

  sdfsmis segment --support-set liver.safetensors --query next.nrrd --output next/

Finished patients show where the liver is in the next one:

  sdfsmis segment --support-set livers/ --query next.nrrd --output next/

A cohort, by four processes; where it was stopped, the same command goes on:

  sdfsmis segment --support-set liver.safetensors --query scans/ --output results/
    --jobs 4 --skip-existing"""


class ManyValues(TyperCommand):
    """A command whose options of several values take them after one name: ``--slice 3 4`` as ``--slice 3 --slice 4``.

    ``--keep-largest`` alone means ``--keep-largest volume``.
    """

    bare = {"--keep-largest": "volume"}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.spread(args))

    def spread(self, args: Sequence[str]) -> list[str]:
        """``args`` with an option's name before each of its values."""
        options: dict[str, Any] = {name: param for param in self.params for name in param.opts if name.startswith("-")}
        spread: list[str] = []
        unfilled, many = False, ""  # whether an option still needs its value; the one that takes further values
        for place, token in enumerate(args):
            if unfilled:
                spread.append(token)
                unfilled = False
            elif token == "--":
                return [*spread, *args[place:]]
            elif _is_name(token):
                name, equals, _ = token.partition("=")
                spread.append(token)
                option = options.get(name)
                many = name if option is not None and option.multiple else ""
                if name in self.bare and not equals and (place + 1 == len(args) or _is_name(args[place + 1])):
                    spread.append(self.bare[name])
                else:
                    unfilled = option is not None and not option.is_flag and not equals
            else:
                spread += [many, token] if many else [token]
        return spread


def _is_name(token: str) -> bool:
    """Whether a word of the command line is the name of an option, and not a value such as -1."""
    return token.startswith("-") and len(token) > 1 and not token[1:].replace(".", "", 1).isdigit()


Axis = Literal["auto", "0", "1", "2"]
Engine = Literal["process", "ray"]
Component = Literal["volume", "slice", "off"]


def _painted(text: str, metavar: str | None = None, name: str | None = None) -> Any:
    return _option("What is painted", text, metavar, name)


def _result(text: str, metavar: str | None = None, name: str | None = None) -> Any:
    return _option("Scans and results", text, metavar, name)


def _run(text: str, metavar: str | None = None) -> Any:
    return _option("How it is segmented", text, metavar)


def _many(text: str, metavar: str | None = None, name: str | None = None) -> Any:
    return _option("Many scans", text, metavar, name)


def _server(text: str, metavar: str | None = None) -> Any:
    return _option("On a server", text, metavar)


def _clean(text: str, metavar: str | None = None, name: str | None = None) -> Any:
    return _option("Clean-up, all off by default", text, metavar, name)


def _option(panel: str, text: str, metavar: str | None, name: str | None = None) -> Any:
    return typer.Option(*([name] if name else []), help=text, metavar=metavar, rich_help_panel=panel)


SUPPORT = _painted("The scan that was painted on: any file that SimpleITK reads, or a DICOM folder.", "SCAN")
MASK = _painted("What was painted, 0 is background. Another grid in the same frame is resampled.", "LABELMAP")
SUPPORT_SET = _painted(
    "Painted examples saved by --save-support-set, in place of --support and --mask; or a library of finished scans "
    "(sdfsmis examples add), which tell where a structure lies; or one of each. A library also goes with --support.",
    "FILE|LIBRARY ...",
)
SAVE = _painted("Save the painted slices as a support set: examples to segment other scans with.", "FILE")
LABEL = _painted("Label value in the mask; several may follow. Default: each label.", "N ...")
SLICE = _painted(
    "Slices of the mask that are the support, counted from 0 in array order: 40, or with its axis 2:40; several with "
    "blanks or commas between them. Default: every painted one. A slice that is named but lacks a label shows that the "
    "structure is not there.",
    "[AXIS:]K ...",
    "--slice",
)
AXIS = _painted(
    "Axis that slices are counted along, in array order (slices, height, width): 0 is the file's third. auto: each "
    "axis on which slices are painted; for a whole structure the one whose two in-plane spacings are most alike."
)
QUERY = _result(
    "Scans to segment: files, DICOM folders, folders of them, and lists: .txt with a path on each line, .csv with a "
    "column scan; paths in a list are relative to it. Default: the other slices of --support.",
    "SCAN ...",
)
OUTPUT = _result(
    "The labelmap: .nii.gz, .nii, .seg.nrrd (with segment names, for 3D Slicer), .nrrd or .mha. Or a folder, which "
    "gets <name>_seg.nii.gz for each scan, in its sub-folder where several scans have the same name. Volumes in ml "
    "come beside it in <name>_volumes.csv; of several scans those and more also in cohort.csv.",
    "FILE_OR_DIR",
)
PROBABILITIES = _result(
    "Also write the probabilities, 0 to 1, before clean-up. Several labels get _label<N> in the name; for several "
    "scans name a folder.",
    "FILE",
)
DRY_RUN = _result("Check everything, print what would be done and how long it takes, write nothing.", name="--dry-run")
SKIP = _many("Skip scans whose result exists: a run that was stopped goes on.", name="--skip-existing")
JOBS = _many(
    "How many scans at a time, each in a process that loads the model. Default: 1; with ray one for each GPU of the "
    "cluster, or for each node without GPUs.",
    "N",
)
ENGINE = _many(
    "process: on this machine. ray: on the Ray cluster that RAY_ADDRESS names, or that was started here; all its nodes "
    "find scans, model and results under the same paths, and have sdfsmis."
)
STRATEGY = _run(
    "propagate: outwards from the painted slices, each finished slice helping the next. independent: each slice alone "
    "against the painted ones, as in the paper; on another scan registration warps the painted masks onto it first."
)
THRESHOLD = _run("Probability above which a voxel belongs to the structure, between 0 and 1.", "T")
REGION = _run("auto: look at a square around the structure. full: at whole slices, as in the paper.")
MODEL = _run("Weights: built-in, a pipeline folder (sdfsmis convert makes one), or a model hub's id.", "M")
DEVICE = _run("auto (the GPU if there is one), cpu, cuda or cuda:N.", "D")
SERVER = _server("Segment on a backend (sdfsmis serve), not on this computer; it gets the slices that it needs.", "URL")
TOKEN = _server("Access token of the server. Default: the variable SDFSMIS_TOKEN.", "T")
CERTIFICATE = _server("Trust this certificate (PEM), such as a server's self-signed one.", "FILE")
KEEP_LARGEST = _clean(
    "Keep the largest connected component of each label: of the volume (the default of the option), or of each slice."
)
SMOOTH = _clean("Smooth the border: standard deviation of a Gaussian, in mm.", "MM")
FILL_HOLES = _clean("Fill holes that the structure encloses within a slice.", name="--fill-holes")


def segment(
    ctx: typer.Context,
    *,
    support: Annotated[Path | None, SUPPORT] = None,
    mask: Annotated[Path | None, MASK] = None,
    support_set: Annotated[list[Path] | None, SUPPORT_SET] = None,
    save_support_set: Annotated[Path | None, SAVE] = None,
    label: Annotated[list[int] | None, LABEL] = None,
    slice_: Annotated[list[str] | None, SLICE] = None,
    axis: Annotated[Axis, AXIS] = "auto",
    query: Annotated[list[Path] | None, QUERY] = None,
    output: Annotated[str, OUTPUT],
    probabilities: Annotated[str | None, PROBABILITIES] = None,
    dry_run: Annotated[bool, DRY_RUN] = False,
    skip_existing: Annotated[bool, SKIP] = False,
    jobs: Annotated[int | None, JOBS] = None,
    engine: Annotated[Engine, ENGINE] = "process",
    strategy: Annotated[Strategy, STRATEGY] = "propagate",
    threshold: Annotated[float, THRESHOLD] = 0.5,
    region: Annotated[Region, REGION] = "auto",
    model: Annotated[str, MODEL] = BUILT_IN,
    device: Annotated[str, DEVICE] = "auto",
    server: Annotated[str | None, SERVER] = None,
    token: Annotated[str | None, TOKEN] = None,
    server_certificate: Annotated[Path | None, CERTIFICATE] = None,
    keep_largest: Annotated[Component, KEEP_LARGEST] = "off",
    smooth: Annotated[float, SMOOTH] = 0.0,
    fill_holes: Annotated[bool, FILL_HOLES] = False,
) -> None:
    """Segment a scan, or several, by painted slices.

    Painted slices stay as painted. The result has the mask's label values and names, and records how it was made.
    If one of several scans fails, the others go on; failures are listed at the end, and the exit code is 1.
    """
    with waiting("Starting"):
        from SDFSMISLib.cli import segment_run
        from SDFSMISLib.client.backend_process import TOKEN_VARIABLE
        from SDFSMISLib.cohort.job import CohortSettings
        from SDFSMISLib.images.postprocess import Postprocessing

    if server is not None and not token:
        token = os.environ.get(TOKEN_VARIABLE)
    done = segment_run.run_segment(
        segment_run.SupportFiles(
            support, mask, tuple(support_set or ()), tuple(sorted(set(label or ()))), tuple(slice_ or ()), axis
        ),
        CohortSettings(
            RunOptions(strategy, region, threshold),
            Postprocessing(smooth, fill_holes, keep_largest),
            model,
            device,
            segment_run.backend_of(server, token, server_certificate, model, device),
            command_line(ctx),
        ),
        query or [],
        output,
        probabilities,
        save_support_set=save_support_set,
        dry_run=dry_run,
        skip_existing=skip_existing,
        workers=jobs,
        engine=engine,
    )
    if not done:
        raise typer.Exit(1)


def command_line(ctx: typer.Context) -> str:
    """The whole command line in a shell's syntax, for the provenance; without the token."""
    words = ["sdfsmis"]
    for word in ctx.obj:
        if words[-1] == SECRET:
            word = HIDDEN
        elif word.startswith(f"{SECRET}="):
            word = f"{SECRET}={HIDDEN}"
        words.append(word)
    return shlex.join(words)
