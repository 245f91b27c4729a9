"""The options of `sdfsmis segment`, with their help; what it does is in `segment_run`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

__all__ = ["EXAMPLES", "ManyValues", "command_line", "segment"]

EXAMPLES = """Examples, each on one line:

One painted slice to the whole scan:

  sdfsmis segment --support ct.nrrd --mask painted.nrrd --output liver.seg.nrrd

Label 2 of a full labelmap, of which only slice 40 is used, on two other scans:

  sdfsmis segment --support a.nii --mask labels.nii --slice 40 --label 2
    --query b.nii c.nii --output results/

Painted today, used next month:

  sdfsmis segment --support ct.nrrd --mask painted.nrrd --output liver.seg.nrrd
    --save-support-set liver.safetensors

  sdfsmis segment --support-set liver.safetensors --query next.nrrd --output next/"""


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
    """Whether a word of the command line is an option's name, and not a value such as -1."""
    return token.startswith("-") and len(token) > 1 and not token[1:].replace(".", "", 1).isdigit()


class Axis(str, Enum):
    auto = "auto"
    slices = "0"
    height = "1"
    width = "2"


class Strategy(str, Enum):
    propagate = "propagate"
    independent = "independent"


class Region(str, Enum):
    auto = "auto"
    full = "full"


class Component(str, Enum):
    volume = "volume"
    slice = "slice"
    off = "off"


def _painted(text: str, metavar: str | None = None, name: str | None = None) -> Any:
    return _option("What is painted", text, metavar, name)


def _result(text: str, metavar: str | None = None, name: str | None = None) -> Any:
    return _option("Scans and results", text, metavar, name)


def _run(text: str, metavar: str | None = None) -> Any:
    return _option("How it is segmented", text, metavar)


def _clean(text: str, metavar: str | None = None, name: str | None = None) -> Any:
    return _option("Clean-up, all off by default", text, metavar, name)


def _option(panel: str, text: str, metavar: str | None, name: str | None = None) -> Any:
    return typer.Option(*([name] if name else []), help=text, metavar=metavar, rich_help_panel=panel)


SUPPORT = _painted("The scan that was painted on: any file that SimpleITK reads, or a DICOM folder.", "SCAN")
MASK = _painted("What was painted, 0 is background. Another grid in the same frame is resampled.", "LABELMAP")
SUPPORT_SET = _painted("Painted slices kept by --save-support-set, in place of --support and --mask.", "FILE")
SAVE = _painted("Keep the painted slices in one file, to segment other scans with.", "FILE")
LABEL = _painted("Label value in the mask; several may follow. Default: each label.", "N ...")
SLICE = _painted(
    "Slices of the mask that are the support, counted from 0 in array order. Default: every painted one. A slice that "
    "is named but lacks a label says that the structure is not there.",
    "K ...",
    "--slice",
)
AXIS = _painted(
    "Axis that slices are counted along, in array order (slices, height, width): 0 is the file's third. auto: the one "
    "on which single slices are painted, else the one whose two in-plane spacings are most alike."
)
QUERY = _result("Scans to segment. Default: the other slices of --support.", "SCAN ...")
OUTPUT = _result(
    "The labelmap: .nii.gz, .nii, .seg.nrrd (with segment names, for 3D Slicer), .nrrd or .mha. Or a folder, which "
    "gets <name>_seg.nii.gz for each scan. Volumes in ml come beside it in <name>_volumes.csv.",
    "FILE_OR_DIR",
)
PROBABILITIES = _result(
    "Also write the probabilities, 0 to 1, before clean-up. Several labels get _label<N> in the name; for several "
    "scans name a folder.",
    "FILE",
)
SKIP = _result("Pass over scans whose result is there.", name="--skip-existing")
DRY_RUN = _result("Check everything, say what would be done and how long it takes, write nothing.", name="--dry-run")
STRATEGY = _run(
    "propagate: outwards from the painted slices, each finished slice helping the next. independent: each slice alone "
    "against the painted ones, as in the paper."
)
THRESHOLD = _run("Probability above which a voxel belongs to the structure, between 0 and 1.", "T")
REGION = _run("auto: look at a square around the structure. full: at whole slices, as in the paper.")
MODEL = _run("Weights: built-in, a pipeline folder (sdfsmis convert makes one), or a model hub's id.", "M")
DEVICE = _run("auto (the GPU where there is one), cpu, cuda or cuda:N.", "D")
KEEP_LARGEST = _clean(
    "Keep the largest connected piece of each label: of the volume (what the option means alone), or of each slice."
)
SMOOTH = _clean("Smooth the border: standard deviation of a Gaussian, in mm.", "MM")
FILL_HOLES = _clean("Fill what the structure encloses within a slice.", name="--fill-holes")


def segment(
    ctx: typer.Context,
    *,
    support: Annotated[Path | None, SUPPORT] = None,
    mask: Annotated[Path | None, MASK] = None,
    support_set: Annotated[Path | None, SUPPORT_SET] = None,
    save_support_set: Annotated[Path | None, SAVE] = None,
    label: Annotated[list[int] | None, LABEL] = None,
    slice_: Annotated[list[int] | None, SLICE] = None,
    axis: Annotated[Axis, AXIS] = Axis.auto,
    query: Annotated[list[Path] | None, QUERY] = None,
    output: Annotated[str, OUTPUT],
    probabilities: Annotated[str | None, PROBABILITIES] = None,
    skip_existing: Annotated[bool, SKIP] = False,
    dry_run: Annotated[bool, DRY_RUN] = False,
    strategy: Annotated[Strategy, STRATEGY] = Strategy.propagate,
    threshold: Annotated[float, THRESHOLD] = 0.5,
    region: Annotated[Region, REGION] = Region.auto,
    model: Annotated[str, MODEL] = "built-in",
    device: Annotated[str, DEVICE] = "auto",
    keep_largest: Annotated[Component, KEEP_LARGEST] = Component.off,
    smooth: Annotated[float, SMOOTH] = 0.0,
    fill_holes: Annotated[bool, FILL_HOLES] = False,
) -> None:
    """Segment a scan, or several, by painted slices.

    Painted slices come out as painted. The result has the mask's label values and names, and tells how it was made.
    """
    from SDFSMISLib.segment_run import SegmentRequest, run_segment

    request = SegmentRequest(
        output=output,
        support=support,
        mask=mask,
        support_set=support_set,
        save_support_set=save_support_set,
        labels=tuple(sorted(set(label or ()))),
        slices=tuple(slice_ or ()),
        axis=axis.value,
        queries=tuple(query or ()),
        strategy=strategy.value,
        threshold=threshold,
        probabilities=probabilities,
        region=region.value,
        model=model,
        device=device,
        keep_largest=keep_largest.value,
        smooth_mm=smooth,
        fill_holes=fill_holes,
        skip_existing=skip_existing,
        dry_run=dry_run,
    )
    run_segment(request, command_line(ctx))


def command_line(ctx: typer.Context) -> str:
    """The whole command line, as a shell takes it."""
    return shlex.join(["sdfsmis", *ctx.obj])
