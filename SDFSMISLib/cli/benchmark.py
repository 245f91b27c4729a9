"""`sdfsmis benchmark`: the published benchmark, from downloaded folders to the papers' table.

The options are here, and the trainer, which is passed to the benchmark; the work is done in `SDFSMISLib.benchmark`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from SDFSMISLib.cli.segment import ManyValues
from SDFSMISLib.console import progress, waiting
from SDFSMISLib.errors import InputError
from SDFSMISLib.options import BUILT_IN

if TYPE_CHECKING:
    from SDFSMISLib.benchmark import DataSet, FoldResult, Model, Plan, TrainingJob
    from SDFSMISLib.cohort.cases import Case
    from SDFSMISLib.inference import Segmenter
    from SDFSMISLib.training.config import TrainingConfig


__all__ = ["benchmark"]

PARTS = {"vtct": "translator", "query-enhancement": "prototype", "support-values": "bank"}
LOSSES = ("entropy", "dice", "latent", "autoencoder")
NOTHING = "none"

benchmark = typer.Typer(
    help="The published benchmark of few-shot medical image segmentation: Abd-MRI, Abd-CT and CMR.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


DataName = Literal["chaos_t2", "sabs", "cmr"]
ProtocolName = Literal["field", "official"]
ExclusionName = Literal["any", "all"]
FormatName = Literal["markdown", "latex", "csv"]

Data = Annotated[DataName, typer.Option(help="chaos_t2: Abd-MRI. sabs: Abd-CT (BTCV). cmr: MS-CMRSeg 2019, bSSFP.")]
Cases = Annotated[
    list[Path], typer.Option(metavar="FILE ...", help="Manifests that hold the data sets; prepare makes one.")
]
Config = Annotated[
    str,
    typer.Option(
        metavar="FILE", help="How to train, as in sdfsmis train (paper, built_in ...), or none: weights as they are."
    ),
]
Output = Annotated[Path, typer.Option(metavar="DIR", help="Folder of this run; one that was stopped goes on.")]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="M", help="Weights to begin with, in place of those that the configuration names; with none: to test."
    ),
]
Setting = Annotated[
    int, typer.Option(min=1, max=2, help="2: training sees no slice that shows a tested organ. 1: it may.")
]
Folds = Annotated[list[str] | None, typer.Option("--fold", metavar="N ...", help="0 to 4, or all, the default.")]
Shots = Annotated[
    list[int] | None,
    typer.Option(metavar="K ...", min=1, help="Painted slices for each third of the organ; papers: 1, 5. Default: 1."),
]
ProtocolOption = Annotated[
    ProtocolName,
    typer.Option(
        "--protocol",
        help="field: the literature's, with every scan tested. official: what the official code of SD-FSMIS does, to "
        "see what it is worth: trains on labels of some organs, gives all painted slices to every chunk, thresholds at "
        "a quarter of the chunk's maximum.",
    ),
]
ExclusionOption = Annotated[
    ExclusionName,
    typer.Option(
        "--exclusion",
        help="In Setting 2. any: a training for each group of organs, without the slices that show one of them. all: "
        "as much of the literature has it, only slices that show all four organs are left out.",
    ),
]
TrainOn = Annotated[
    DataName | None, typer.Option(help="Cross-domain: train on all scans of this data set, test on --data.")
]
Device = Annotated[str, typer.Option(metavar="D", help="To test on: auto, cpu, cuda or cuda:N.")]
Without = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME ...",
        help=f"An ablation: {', '.join(PARTS)}; or of the configuration's losses {', '.join(LOSSES)}.",
    ),
]


@benchmark.command(epilog="Example:\n\n  sdfsmis benchmark prepare --data sabs --source RawData --output abd-ct")
def prepare(
    data: Data,
    source: Annotated[Path, typer.Option(metavar="FOLDER", help="What was downloaded, as the challenge lays it out.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the prepared scans and their manifest.")],
) -> None:
    """Bring downloaded scans into the benchmark's form: grid, intensities, labels, manifest."""
    from SDFSMISLib.benchmark import DATA_SETS
    from SDFSMISLib.benchmark.prepare import prepare as run_prepare

    with progress("Preparing", 1) as advance:
        manifest = run_prepare(DATA_SETS[data], source, output, advance)
    typer.echo(f"Wrote {manifest}")


@benchmark.command(
    cls=ManyValues,
    epilog="Examples:\n\n"
    "  sdfsmis benchmark run --data chaos_t2 --cases abd-mri/cases.json --config none --output built-in\n\n"
    "  sdfsmis benchmark run --data chaos_t2 --cases abd-mri/cases.json --config paper --model sd-fsmis --output paper"
    "\n\nOn several GPUs: accelerate launch -m SDFSMISLib.cli benchmark run ...",
)
def run(
    data: Data,
    cases: Cases,
    config: Config,
    output: Output,
    model: Weights = None,
    setting: Setting = 1,
    fold: Folds = None,
    shots: Shots = None,
    protocol: ProtocolOption = "field",
    exclusion: ExclusionOption = "any",
    train_on: TrainOn = None,
    without: Without = None,
    device: Device = "auto",
) -> None:
    """Train on each fold's other scans without their labels, test on the fold, and print the table."""
    from SDFSMISLib.benchmark.table import as_text, benchmark_tables

    plan = _plan(data, cases, output, setting, fold, shots, protocol, exclusion, train_on)
    results = _run(plan, config, model, _names(without), device)
    if results is not None:
        typer.echo(as_text(benchmark_tables([results], published=False), "markdown"))
        typer.echo(f"Wrote {output / 'results'}; beside the papers: sdfsmis benchmark table --results {output}")


@benchmark.command(
    cls=ManyValues,
    epilog="Example:\n\n"
    "  sdfsmis benchmark ablate --data chaos_t2 --cases abd-mri/cases.json --fold 0 --config paper --output ablation",
)
def ablate(
    data: Data,
    cases: Cases,
    config: Config,
    output: Output,
    model: Weights = None,
    setting: Setting = 1,
    fold: Folds = None,
    protocol: ProtocolOption = "field",
    exclusion: ExclusionOption = "any",
    device: Device = "auto",
) -> None:
    """Run once with all of the method and once without each part and each loss, and print what they are worth."""
    from SDFSMISLib.benchmark.table import ablation_table, as_text

    runs = []
    for without in [None, *_ablations(config)]:
        place = output / (f"without-{without}" if without else "all")
        plan = _plan(data, cases, place, setting, fold, None, protocol, exclusion, None, output / "training-set")
        runs.append(_run(plan, config, model, [without] if without else [], device))
    done = [results for results in runs if results is not None]
    if done:
        folds = ", ".join(map(str, plan.folds))
        text = as_text({f"{plan.data.title}, fold {folds}: ablations, Dice, %": ablation_table(done)}, "markdown")
        _write_text(output / "ablation.md", text)
        typer.echo(text)
        typer.echo(f"Wrote {output / 'ablation.md'}")


@benchmark.command(
    cls=ManyValues, epilog="Example:\n\n  sdfsmis benchmark table --results paper built-in --format latex"
)
def table(
    results: Annotated[list[Path], typer.Option(metavar="DIR ...", help="Folders that benchmark run has made.")],
    format: Annotated[FormatName, typer.Option(help="latex is for the package booktabs.")] = "markdown",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there. Default: print it.")] = None,
    published: Annotated[bool, typer.Option(help="With the papers' rows, each with its source.")] = True,
) -> None:
    """Make the papers' table of runs: for each data set and setting a row for each method, a column for each organ."""
    from SDFSMISLib.benchmark import read_fold_results
    from SDFSMISLib.benchmark.table import NOTES, as_text, benchmark_tables

    text = as_text(benchmark_tables([read_fold_results(folder) for folder in results], published), format)
    if format == "markdown":
        text += f"\n{NOTES}\n"
    if output is None:
        typer.echo(text, nl=False)
    else:
        _write_text(output, text)
        typer.echo(f"Wrote {output}")


# -- what the options mean


def _plan(
    data: DataName,
    manifests: Sequence[Path],
    output: Path,
    setting: int,
    folds: list[str] | None,
    shots: list[int] | None,
    protocol: ProtocolName,
    exclusion: ExclusionName,
    train_on: DataName | None,
    shared: Path | None = None,
) -> Plan:
    from SDFSMISLib.benchmark import DATA_SETS, Plan

    other = DATA_SETS[train_on] if train_on and train_on != data else None
    return Plan(
        data=DATA_SETS[data],
        cases=_cases_of(DATA_SETS[data], manifests),
        output=output,
        setting=setting,
        exclusion=exclusion,
        protocol=protocol,
        folds=_fold_numbers(_names(folds)),
        shots=tuple(dict.fromkeys(shots or [1])),
        train_on=(other, _cases_of(other, manifests)) if other else None,
        shared=shared,
    )


def _cases_of(data: DataSet, manifests: Sequence[Path]) -> tuple[Case, ...]:
    """The scans of a data set, from the first manifest that has it."""
    from SDFSMISLib.benchmark import ordered_cases
    from SDFSMISLib.evaluation import read_manifest

    read = [read_manifest(path) for path in manifests]
    return ordered_cases(next((one for one in read if data.name in one.groups), read[0]), data)


def _fold_numbers(names: list[str]) -> tuple[int, ...]:
    from SDFSMISLib.benchmark import FOLDS

    if names in ([], ["all"]):
        return tuple(range(FOLDS))
    if wrong := [name for name in names if name not in map(str, range(FOLDS))]:
        raise InputError(f"The fold {wrong[0]!r} was given; accepted are 0 to {FOLDS - 1}, or all alone.")
    return tuple(sorted(map(int, names)))


def _names(values: list[str] | None) -> list[str]:
    """Names given as ``a b`` or ``a,b``, each once."""
    names = (name.strip() for value in values or () for name in value.split(","))
    return list(dict.fromkeys(name for name in names if name))


def _ablations(config: str) -> list[str]:
    """Each part, and each loss of the configuration where it has several."""
    losses = [] if config == NOTHING else [name for name, weight in _read(config, None).losses.items() if weight]
    return [*PARTS, *(losses if len(losses) > 1 else [])]


# -- a run


def _run(plan: Plan, config: str, weights: str | None, without: list[str], device: str) -> list[FoldResult] | None:
    """Trains where a configuration says so, and tests; None for a process that only helps to train."""
    from SDFSMISLib.benchmark import measure_folds, train_folds

    if unknown := [name for name in without if name not in (*PARTS, *LOSSES)]:
        raise InputError(
            f"There is no ablation {unknown[0]!r}; there are {', '.join(PARTS)}, and the losses {', '.join(LOSSES)}."
        )
    if config == NOTHING:
        folders, model = None, _model_as_it_is(weights or BUILT_IN, without, device)
    else:
        settings = _changed(_read(config, weights), without, plan.protocol == "official")
        folders, model = train_folds(plan, _Trainer(settings)), _trained_model(config, settings, without, device)
        if not _leads():
            return None
    with progress("Testing", 1) as advance:
        return measure_folds(plan, model, folders, advance)


def _model_as_it_is(name: str, without: list[str], device: str) -> Model:
    from SDFSMISLib.benchmark import Model

    if losses := [loss for loss in without if loss in LOSSES]:
        raise InputError(f"Without training there is no loss {losses[0]!r} to leave out; name a configuration.")

    @lru_cache(maxsize=1)
    def load(name: str) -> Segmenter:
        segmenter = _segmenter(name, device)
        if without:
            segmenter.pipeline.register_to_config(without=_parts(without))
        return segmenter

    own_kind = load(name).pipeline.takes_neighbours  # or the paper's, which sees whole slices from min to max
    return Model(Path(name).name, name, "robust" if own_kind else "minmax", load, {"without": without})


def _trained_model(config: str, settings: TrainingConfig, without: list[str], device: str) -> Model:
    from SDFSMISLib.benchmark import Model

    configuration = json.loads(settings.model_dump_json(exclude={"cases", "output", "start", "workers"}))
    about = {"without": without, "configuration": configuration}
    name = Path(config).name.removesuffix(".json")
    return Model(name, settings.start, settings.window, lambda folder: _segmenter(folder, device), about)


def _segmenter(name: str, device: str) -> Segmenter:
    with waiting("Loading the model"):
        from SDFSMISLib.inference import Segmenter

        return Segmenter.from_pretrained(name, device)


# -- training


def _read(config: str, start: str | None) -> TrainingConfig:
    with waiting("Starting"):
        from SDFSMISLib.training.config import TrainingConfig
    own = {"cases": "cases.json", "output": "training"}  # what a job says, whatever the file does
    return TrainingConfig.read(Path(config), **own, **({"start": start} if start else {}))


def _parts(without: list[str]) -> list[str]:
    """What the pipeline calls the parts among the ablations."""
    return [PARTS[name] for name in without if name in PARTS]


def _changed(settings: TrainingConfig, without: list[str], official: bool) -> TrainingConfig:
    """The configuration as the benchmark trains by it: on all scans that a job names, without their labels; by them
    where it is `official`."""
    losses: dict[str, float] = {name: 0.0 if name in without else weight for name, weight in settings.losses.items()}
    if absent := [name for name in without if name in LOSSES and name not in losses]:
        raise InputError(f"The configuration has no loss {absent[0]!r} to leave out; it has {', '.join(losses)}.")
    if not any(losses.values()):
        raise InputError("The configuration would have no loss left; name another one.")
    own = {"shippable": False, "held_out": (), "validate_every": 0, "label_share": 0.0, "across": "registration"}
    own |= {"write_every": 0.0}  # a pipeline that is there is a finished one
    if official:
        own |= {"supervoxels": "labels", "across": "labels"}
    parts = {"without": _parts(without)} if _parts(without) else {}
    return type(settings)(**(settings.model_dump() | own | parts | {"losses": losses}))


class _Trainer:
    """Trains each job by one configuration; what is finished is left as it is."""

    def __init__(self, settings: TrainingConfig) -> None:
        self.settings = settings

    def __call__(self, job: TrainingJob) -> Path:
        """The folder of the job's pipeline; raises :class:`InputError` where it was trained by another one."""
        with waiting("Starting"):
            from accelerate import Accelerator

            from SDFSMISLib.training.trainer import train
        processes = Accelerator(mixed_precision=self.settings.precision)
        with processes.main_process_first(), progress("Scans", len(job.cases)) as advance:
            settings = self._for(job, job.manifest(advance))
            _keep(settings, job.output)
        folder = job.output / "pipeline"
        if (folder / "model_index.json").exists():
            return folder
        with progress(f"Training {job.output.name}", settings.steps) as advance:
            return train(settings, advance, job.shared / "supervoxels")

    def _for(self, job: TrainingJob, manifest: Path) -> TrainingConfig:
        changes: dict[str, Any] = {
            "cases": str(manifest),
            "output": str(job.output),
            "supervoxel_size": job.data.supervoxel_size,
        }
        return type(self.settings)(**(self.settings.model_dump() | changes))


def _keep(settings: TrainingConfig, folder: Path) -> None:
    """Writes the configuration beside the weights that it makes; refuses a folder of another one."""
    path = folder / "configuration.json"
    text = settings.model_dump_json(indent=1, exclude={"cases", "output", "workers"}) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise InputError(
            f"{folder} holds a training by another configuration; name another output folder, or remove that one."
        )
    _write_text(path, text)


def _leads() -> bool:
    """Whether this is the process that tests; others have helped to train."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _write_text(path: Path, text: str) -> None:
    from SDFSMISLib.images.files import write_text

    write_text(path, text)
