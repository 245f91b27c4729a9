"""`sdfsmis`: the command line. Commands and options with their help; the other rooms do the work.

Exit codes: 0 done; 1 failed; 2 bad usage or input, with one sentence on standard error; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from SDFSMISLib import __version__
from SDFSMISLib.cli.benchmark import benchmark
from SDFSMISLib.cli.examples import examples
from SDFSMISLib.cli.segment import EXAMPLES, Engine, ManyValues, command_line, segment
from SDFSMISLib.console import one_line, print_status, progress, table_console, waiting, warnings_as_lines
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.model.memory import collect_rarely, keep_freed_memory
from SDFSMISLib.options import BUILT_IN
from SDFSMISLib.training import CONFIGURATIONS

__all__ = ["main"]

(UsageError,) = typer.BadParameter.__bases__  # of the click that typer works with: its own, or the installed one
INTERRUPTED = 130

app = typer.Typer(
    help="Paint one slice of a medical scan and get the structure on every other slice (SD-FSMIS).\n\n"
    "Not a medical device.",
    epilog="Begin with: sdfsmis demo. Each command has its own help: sdfsmis segment --help.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


Protocol = Literal["same-volume", "cross-volume", "field", "interactive"]
Split = Literal["test", "train"]
ExamplesFrom = Literal["all", "train", "test"]


SLICES = "slices"  # the name of models that get no finished scans, beside those that do


class Size(str, Enum):  # typer knows no lists of literals
    built_in = BUILT_IN
    sd15 = "sd15"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdfsmis {__version__}")
        raise typer.Exit()


@app.callback()
def _sdfsmis(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command(cls=ManyValues, epilog=EXAMPLES)(segment)
app.add_typer(benchmark, name="benchmark")
app.add_typer(examples, name="examples")


@app.command()
def demo(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("demo-output"),
) -> None:
    """Segment a real scan, the MNI152 head, from one painted slice; a minute or two."""
    from SDFSMISLib.cli.demo import run_demo

    run_demo(output, command_line(ctx))


@app.command()
def doctor() -> None:
    """Check this installation: versions, devices, built-in weights, a self-test, disk space."""
    from SDFSMISLib.cli.doctor import run_doctor

    if not run_doctor():
        raise typer.Exit(1)


@app.command(cls=ManyValues)
def bench(
    size: Annotated[
        list[Size] | None,
        typer.Option(help="built-in, or sd15: as large as Stable Diffusion 1.5 with DINOv2-base. Default: both."),
    ] = None,
    queries: Annotated[int, typer.Option(metavar="N", min=1, help="Slices that one support segments.")] = 16,
    resolution: Annotated[
        int | None, typer.Option(metavar="PIXELS", min=8, help="Side of the slices. Default: 96, and 256 for sd15.")
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="R", min=1, help="Turns of each schedule; the fastest counts.")] = 1,
    batch_size: Annotated[int, typer.Option(metavar="B", min=1, help="Queries per pass of our schedule.")] = 8,
    device: Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the figures as JSON.")] = None,
) -> None:
    """Measure seconds and memory per slice beside the official code's schedules; minutes on a CPU."""
    from SDFSMISLib.cli.bench import SIZES, print_report, run_bench

    sizes = [one.value for one in size] if size else tuple(SIZES)
    with progress("bench", 1) as advance:
        report = run_bench(
            sizes,
            queries,
            resolution,
            device,
            output,
            rounds=rounds,
            batch_size=batch_size,
            on_stage=advance,
        )
    print_report(report)


@app.command()
def convert(
    output: Annotated[Path, typer.Option(metavar="DIR", help="The pipeline folder to make.")],
    stable_diffusion: Annotated[
        str | None,
        typer.Option(metavar="DIR|ID", help="Stable Diffusion 1.5 as diffusers has it: a folder or a hub id."),
    ] = None,
    dinov2: Annotated[str | None, typer.Option(metavar="DIR|ID", help="DINOv2: a folder or a hub id.")] = None,
    official: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder that the official SD-FSMIS code trained; where it lacks autoencoder or image encoder, they "
            "come from the two above.",
        ),
    ] = None,
    resolution: Annotated[int, typer.Option(min=8, help="Side of the network's square slices, pixels.")] = 256,
    half: Annotated[bool, typer.Option("--half", help="Store float16, half the size. Default: float32.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a pipeline folder that is there.")] = False,
) -> None:
    """Make a pipeline folder for --model: from Stable Diffusion and DINOv2, to be trained; or from official weights."""
    if official is None and (stable_diffusion is None or dinov2 is None):
        raise InputError(
            "Give --stable-diffusion and --dinov2, or --official with a folder that the official code trained."
        )
    with waiting(f"Making {output}"):
        import torch

        from SDFSMISLib.model.convert import convert_official, convert_stable_diffusion

        dtype = torch.float16 if half else torch.float32
        options: dict[str, Any] = {"resolution": resolution, "dtype": dtype, "overwrite": overwrite}
        if official is not None:
            convert_official(official, output, stable_diffusion=stable_diffusion, dinov2=dinov2, **options)
        elif stable_diffusion is not None and dinov2 is not None:
            convert_stable_diffusion(stable_diffusion, dinov2, output, **options)
    typer.echo(f"Wrote the pipeline folder {output}")


@app.command(epilog="Example:\n\n  sdfsmis train --config built_in --cases cases.json --output training")
def train(
    config: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help=f"JSON, or the name of one of ours: {', '.join(CONFIGURATIONS)}.",
        ),
    ],
    cases: Annotated[
        str | None, typer.Option(metavar="FILE", help="Manifest of training scans, in place of the one it names.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="M", help="Weights to begin with, as in segment, in place of those it names.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of checkpoints, log and weights, in place of its own.")
    ] = None,
) -> None:
    """Train weights by a configuration, or go on where a run was stopped.

    On several GPUs: accelerate launch -m SDFSMISLib.cli train --config FILE
    """
    with waiting("Starting"):
        from SDFSMISLib.evaluation.evaluate import held_out_dice
        from SDFSMISLib.training.config import TrainingConfig
        from SDFSMISLib.training.trainer import train as run_training

    given = {"cases": cases, "start": start, "output": output}
    settings = TrainingConfig.read(config, **{name: value for name, value in given.items() if value is not None})
    with progress("Training", settings.steps) as advance:
        folder = run_training(settings, advance, validate=held_out_dice)
    if os.environ.get("RANK", "0") == "0":  # one of the processes that accelerate has launched
        typer.echo(f"Wrote the pipeline folder {folder}")


@app.command(
    epilog="Example:\n\n  sdfsmis serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem --token-file tokens"
)
def serve(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="127.0.0.1: this computer only. Another one needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7861,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="What clients must know. Default: the variable SDFSMIS_TOKEN, where others of this computer do not "
            "see it; else none on 127.0.0.1, and elsewhere one that is made and printed.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A token per line, for several users; none sees what another has sent."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate (PEM), for https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key (PEM).")] = None,
    model: Annotated[str, typer.Option(metavar="M", help="Weights, as in segment.")] = BUILT_IN,
    device: Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
    engine: Annotated[
        Engine,
        typer.Option(
            help="process: one, on this computer. ray: replicas on the Ray cluster that RAY_ADDRESS names, or that was "
            "started here, else on this computer; as many as are needed, each with a GPU, or one processor. All nodes "
            "have sdfsmis, and find model and certificate under the same paths. /metrics counts for the replica that "
            "happens to answer. Slices that do not fit into Ray's object store it may write to its spill folder."
        ),
    ] = "process",
    until_stdin_closes: Annotated[
        bool, typer.Option("--until-stdin-closes", help="End with the program that holds standard input open.")
    ] = False,
) -> None:
    """Segment for other programs, 3D Slicer among them: a backend on this computer, or for others.

    Scans stay in memory, for an hour at most, and are neither logged nor written. The page /docs explains the routes.
    """
    from SDFSMISLib.server import ServeSettings, run_server

    settings = ServeSettings(
        host,
        port,
        token,
        token_file,
        tls_cert,
        tls_key,
        model,
        device,
        engine=engine,
        until_stdin_closes=until_stdin_closes,
    )
    code = run_server(settings)
    if code:
        raise typer.Exit(code)


@app.command(
    cls=ManyValues,
    epilog="Example:\n\n"
    "  sdfsmis evaluate --cases cases.json --protocol same-volume --baselines copy,growcut --output results",
)
def evaluate(
    ctx: typer.Context,
    cases: Annotated[Path, typer.Option(metavar="FILE", help="Manifest (JSON) of scans with labels.")],
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="same-volume: painted slices of the scan itself. cross-volume: of the next case of its group. field: "
            "the literature's, for comparison with papers only; models take each slice alone. interactive: a simulated "
            "user paints one slice after the other on the scan itself."
        ),
    ],
    shots: Annotated[int, typer.Option(metavar="K", min=1, help="Painted slices; in field, scans: 1.")] = 1,
    directions: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=3, help="same-volume: the largest slice along each of N axes, in place of --shots."
        ),
    ] = 1,
    finished: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="The next N cases of the group that show the target are examples as a whole. cross-volume: in place "
            "of painted slices. same-volume: beside them.",
        ),
    ] = None,
    examples_from: Annotated[
        ExamplesFrom,
        typer.Option(
            help="Cases that may be such examples. For a claim, choose nothing (model, N, options) on the cases that "
            "are measured: that is what the splits are for; all is for groups whose cases are all of one."
        ),
    ] = "all",
    rounds: Annotated[
        int | None, typer.Option(metavar="R", min=1, help="interactive: slices that are painted. Default: 6.")
    ] = None,
    painting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME ...",
            help="interactive: who chooses the next slice. suggested: the product. worst: where most voxels are wrong. "
            "even: evenly spaced ones of one view. Default: each of them.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(metavar="M ...", help="Weights as in segment, or none. Default: built-in.")
    ] = None,
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME ...",
            help="Beside the models. copy: the painted mask on every slice. growcut: Slicer's Grow from seeds. "
            "registration: the mask warped by deformable registration. fill-between: Slicer's Fill between slices, for "
            "two shots or more. With --finished: atlas, what finished scans tell without networks; slices, the models "
            "by painted slices alone, for comparison.",
        ),
    ] = None,
    groups: Annotated[
        list[str] | None, typer.Option(metavar="NAME ...", help="Groups of the manifest. Default: all.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which cases.")] = "test",
    diagnostics: Annotated[
        bool,
        typer.Option("--diagnostics", help="Models also with another structure painted: do they look? Twice the time."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Results, pictures and report.html; a run that was stopped goes on."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Measure models and baselines on cases with labels, and print the Dice of each target."""
    from SDFSMISLib.evaluation import BASELINES, read_manifest, rich_table, summarise, write_report
    from SDFSMISLib.evaluation import evaluate as run_evaluation
    from SDFSMISLib.evaluation.interactive import PAINTINGS, ROUNDS, curves, curves_table, evaluate_interactive
    from SDFSMISLib.evaluation.results import predictions_in
    from SDFSMISLib.evaluation.tables import TITLES

    interactive = protocol == "interactive"
    if not interactive and (rounds or painting):
        raise InputError(f"--rounds and --painting belong to --protocol interactive; {protocol} takes neither.")
    if interactive and (shots > 1 or directions > 1 or diagnostics):
        raise InputError("--protocol interactive takes none of --shots, --directions, --diagnostics; give --rounds.")
    if interactive and finished:
        raise InputError("--protocol interactive takes no --finished; same-volume and cross-volume do.")
    if examples_from != "all" and not finished:
        raise InputError("--examples-from says which cases --finished takes; give --finished N too, or leave it out.")
    chosen_baselines = _names(baselines)
    unknown = [name for name in chosen_baselines if name not in (*BASELINES, SLICES)]
    if unknown:
        raise InputError(f"There is no baseline {unknown[0]!r}; there are {', '.join((*BASELINES, SLICES))}.")
    if not finished and SLICES in chosen_baselines:
        raise InputError(f"The baseline {SLICES} belongs to --finished; without it, models get painted slices alone.")
    manifest = read_manifest(cases)
    chosen = manifest.select(_names(groups) or None, split)
    models = _models(model or [BUILT_IN], protocol, device)
    methods = models | {name: BASELINES[name] for name in chosen_baselines if name != SLICES}
    if SLICES in chosen_baselines:
        methods |= {f"{name}, {SLICES}": its.without_prior() for name, its in models.items()}
    if not methods:
        raise InputError(f"There is nothing to measure; name a model, or of the baselines {', '.join(BASELINES)}.")
    with progress(protocol, len(chosen)) as advance:
        if interactive:
            paintings = _names(painting) or tuple(PAINTINGS)
            rows = evaluate_interactive(manifest, methods, chosen, rounds or ROUNDS, paintings, output, advance)
        else:
            rows = run_evaluation(
                manifest,
                protocol,
                methods,
                chosen,
                shots,
                output,
                advance,
                mispaired=models if diagnostics else (),
                directions=directions,
                finished=finished or 0,
                examples_from=None if examples_from == "all" else examples_from,
            )
        if not rows:
            some = ", ".join(case.id for case in chosen[:3]) + (", …" if len(chosen) > 3 else "")
            raise InputError(
                f"Nothing was measured: of the {len(chosen)} cases chosen ({some}) none has a task of the protocol "
                f"{protocol} that {', '.join(methods)} can do. Look whether their label maps show the targets on "
                "enough slices, or choose other --shots, --finished, --protocol, --split, --groups or methods."
            )
        if output is not None:
            write_report(output, manifest, command_line(ctx), advance)
    console = table_console()
    if interactive:
        found = curves(rows, None if output is None else predictions_in(output))
        console.print(curves_table(found).rich(f"{TITLES['dice_whole']}, after so many slices"))
    else:
        summaries = summarise(rows)
        for measure in ("dice", "dice_whole") if protocol == "same-volume" else ("dice",):
            title = f"{TITLES[measure]}, {rows[0].setting.title}"
            console.print(rich_table(summaries, measure, title))
    for name in [name for name in methods if name not in {row.method for row in rows}]:
        typer.echo(f"{name} was left out: no task of the protocol {protocol} is one that it can do.")
    if output is not None:
        typer.echo(f"Wrote {output / 'report.html'} and, beside it, results.csv, results.json and summary.json")


def _names(values: list[str] | None) -> list[str]:
    """Names given as ``a b`` or ``a,b``, each once."""
    names = (name.strip() for value in values or () for name in value.split(","))
    return list(dict.fromkeys(name for name in names if name))


def _models(names: list[str], protocol: Protocol, device: str) -> dict[str, Any]:
    """The models as methods, by the names under which results are kept: other weights are another method."""
    if names == ["none"]:
        return {}
    if "none" in names:
        raise InputError("--model takes none, or models, and not both.")
    from SDFSMISLib.evaluation import SegmenterMethod

    methods: dict[str, Any] = {}
    strategy = "independent" if protocol == "field" else "propagate"  # the papers' way
    with waiting("Loading the models"):
        from SDFSMISLib.inference import Segmenter
        from SDFSMISLib.model.loading import weights_digest

        for name in names:
            segmenter = Segmenter.from_pretrained(name, device)
            methods[f"{name} {weights_digest(segmenter.pipeline)[:8]}"] = SegmenterMethod(segmenter, strategy=strategy)
    return methods


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (None: this process's) and returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    command = typer.main.get_command(app)
    keep_freed_memory()
    collect_rarely()
    try:
        with warnings_as_lines():
            code = command.main(args=args, prog_name="sdfsmis", standalone_mode=False, obj=args)
    except InputError as error:
        print_status(f"Error: {error}")
        return 2
    except (KeyboardInterrupt, typer.Abort, Cancelled):
        code = INTERRUPTED
    except Exception as error:
        if isinstance(error, UsageError):
            print_status(f"Error: {_usage(error)}")
            return 2
        from SDFSMISLib.client import BackendError

        print_status(f"Failed: {error if isinstance(error, BackendError) else _failure(error)}")
        return 1
    if code == INTERRUPTED:
        print_status("Interrupted; nothing half-written was left.")
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> str:
    """What is wrong with the command line, and where its options are explained."""
    command = error.ctx.command_path if error.ctx else "sdfsmis"
    text = one_line(error.format_message()).replace("Value error, ", "").rstrip(".") or "A command is missing"
    return f"{text}; see {command} --help."


def _failure(error: Exception) -> str:
    """A defect or an exhausted machine in one sentence; the traceback goes into a file, for a report."""
    text = one_line(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"the memory does not suffice ({text}); use a smaller scan or model, or another device."
    try:
        with tempfile.NamedTemporaryFile("w", prefix="sdfsmis-", suffix=".log", delete=False) as log:
            traceback.print_exception(error, file=log)
        return f"{type(error).__name__}: {text} (details in {log.name})"
    except OSError:
        return f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main())
