"""Learning from scans without labels: weights go on learning from supervoxels of the user's own scans.

Trainer, episodes and moving averages are those of every training. What is added: episodes across scans without labels,
a time to keep to, and a measure on held-out supervoxels, by which the best weights are kept; where none are better than
those at the start, these are given back. A run that was killed goes on when it is asked for again.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from SDFSMISLib import __version__
from SDFSMISLib.atomic import atomic_output
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.model.digest import weights_digest
from SDFSMISLib.model.loading import BUILT_IN, load_pipeline, quiet, resolve_device
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.training.adaptation_measure import HeldOut, Score
from SDFSMISLib.training.adaptation_propagation import Propagation
from SDFSMISLib.training.adaptation_recipe import recipe
from SDFSMISLib.training.adaptation_report import write_adaptation_report, write_before_after
from SDFSMISLib.training.adaptation_run import TimedRun, accelerator_on
from SDFSMISLib.training.adaptation_scans import AdaptationScan, kept, prepared, split
from SDFSMISLib.training.adaptation_state import AdaptationState
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.episodes import EpisodeSampler
from SDFSMISLib.training.levels import paired
from SDFSMISLib.training.supervoxel_picture import write_supervoxel_picture
from SDFSMISLib.training.trainer import starting_pipeline
from SDFSMISLib.training.unlabelled_episodes import UnlabelledSampler
from SDFSMISLib.training.volumes import TrainingVolume, synthetic_volumes

__all__ = ["Adapted", "Progress", "adapt"]

PREPARING = 0.2  # share of the time that scans may take to be made ready
MOST_SCANS = 40
MEASURING = 0.25  # share of the time left that validations may take,
FEWEST_VALIDATIONS, MOST_VALIDATIONS = 2, 10
PATIENCE = 4  # validations in succession without a better mean, after which learning ends; not counted are those of the
HOPEFUL = 0.3  # first share of the steps, in which the rate is high and weights may get worse before they get better
FEWEST_STEPS = 8
FULL_RATE = (
    400  # steps from which on the recipe's rate is taken: Adam's steps are of full size before they are any good
)
TRIAL = 4  # steps by which is told how many there is time for
FINISHING = 10.0  # seconds kept for pictures and the report; of a short time no more than
FINISHING_SHARE = 0.1
SEED = 0

Progress = Callable[[int, int, str], None]
"""(done, of so many, what comes now)"""
Cancel = Callable[[], bool]


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        folder: the pipeline folder, with `report.html` and `adaptation.json`.
        improved: False where the weights at the start are given back.
        start, kept: what these weights and the kept ones reach on held-out supervoxels.
        scans: how many were used. skipped: why others were not.
    """

    folder: Path
    improved: bool
    start: Score
    kept: Score
    steps: int
    seconds: float
    scans: int
    skipped: tuple[str, ...]


def adapt(
    scans: Sequence[Path],
    output: Path,
    model: str = BUILT_IN,
    minutes: float = 10.0,
    device: str = "auto",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Adapted:
    """Let weights learn from scans without labels, or go on where that was stopped.

    Args:
        scans: files or DICOM folders, of any modality; those that cannot be used are named in a warning.
        output: the pipeline folder to make.
        model: weights to begin with, as in `load_pipeline`.
        minutes: how long it may take in all, above 0; some steps are learned whatever time they take.
        device: as in `load_pipeline`.
        cancel: asked at each step; True ends the run with `Cancelled`, to be taken up again.

    Raises:
        InputError: where no scan can be used, `output` holds something else, or a value is none that is accepted.
        Cancelled: where `cancel` said so.
    """
    if not scans:
        raise InputError("No scan was given; name a folder with scans of the kind that is to be segmented.")
    if not minutes > 0:
        raise InputError(f"{minutes:g} minutes were given; the time to learn must be above 0.")
    return _Adaptation(scans, output, model, minutes, device, progress or (lambda *_: None), cancel).run()


class _Adaptation:
    """One adaptation, from scans to a pipeline folder."""

    def __init__(
        self,
        scans: Sequence[Path],
        output: Path,
        model: str,
        minutes: float,
        device: str,
        progress: Progress,
        cancel: Cancel | None,
    ) -> None:
        self.paths, self.output, self.model, self.device = list(scans), output, model, resolve_device(device)
        self.progress, self.cancel = progress, cancel
        self.work = output / "work"
        _check_output(output, self.work)
        self.begun = load_pipeline(model, "cpu")
        request = {"minutes": minutes, "model": weights_digest(self.begun), "scans": sorted(map(str, scans))}
        self.state = AdaptationState.opened(self.work / "state.json", request)
        self.clock = time.monotonic() - self.state.seconds
        self.limit = 60 * minutes - min(FINISHING, FINISHING_SHARE * 60 * minutes)
        self.config = recipe(self.begun, model, self.work, self.device, SEED)

    @property
    def seconds(self) -> float:
        """Spent so far, by this process and those before it."""
        return time.monotonic() - self.clock

    def run(self) -> Adapted:
        scans = self._scans()
        volumes = [scan.volume for scan in scans]
        pairs = paired(volumes, self._say_compared(len(scans)))
        learned, held = split(scans, SEED)
        resolution = self.begun.config.resolution
        made_up = synthetic_volumes(self.config.synthetic_count, SEED)
        brings = self.begun.takes_neighbours
        sampler = UnlabelledSampler(learned + made_up, resolution, self.config, pairs, learned, brings)
        samplers: dict[str, EpisodeSampler] = {
            kind: UnlabelledSampler(held, resolution, _only(self.config, kind), pairs, volumes, brings)
            for kind in self.config.mix
        }
        self.held_out = HeldOut(samplers, Propagation(scans, held, SEED), self.config)
        pipeline = starting_pipeline(self.config).to(self.device)
        if not self.state.steps:
            self._begin(sampler, pipeline)
        config = self._paced()
        with accelerator_on(self.device, config) as accelerator:
            run = TimedRun(config, accelerator, sampler, self._say, self._goes_on, self._take)
            average = run.segmentation(pipeline)
        if run.step not in self.state.scores:  # its time was over between two validations
            self._take(run.step, average)
        return self._finished(scans, learned, held)

    # -- before learning

    def _scans(self) -> list[AdaptationScan]:
        """The scans that can be used, as many as there is time for."""
        cache, state = self.work / "scans", self.state
        if state.scans:
            return [kept(cache / content[:24]) for content in state.scans]
        found: dict[str, AdaptationScan] = {}
        order = np.random.default_rng(SEED).permutation(len(self.paths)).tolist()
        for number, place in enumerate(order):
            path = self.paths[place]
            self.progress(number, len(order), f"Reading {path.name}")
            self._ask()
            late = self.seconds > PREPARING * self.limit and len(found) >= 2
            if late or len(found) == MOST_SCANS:
                rest = len(order) - number
                state.skipped["others"] = f"{rest} of {len(order)} scans were left out for time; give more minutes."
                break
            try:
                scan = prepared(path, cache)
                found.setdefault(scan.content, scan)
            except InputError as error:
                state.skipped[path.name] = str(error)
        for why in state.skipped.values():
            warnings.warn(why, stacklevel=2)
        if not found:
            raise InputError(f"None of the {len(order)} scans can be used: {next(iter(state.skipped.values()))}")
        state.scans = sorted(found)
        self._keep_state()
        return [found[content] for content in state.scans]

    def _say_compared(self, count: int) -> Callable[[int], None]:
        def told(number: int) -> None:
            self.progress(number, count, "Comparing scans")
            self._ask()

        return told

    def _begin(self, sampler: UnlabelledSampler, pipeline: SDFSMISPipeline) -> None:
        """Measures the weights at the start, and for how many steps there is time."""
        self.progress(0, 1, "Measuring the weights at the start")
        began = time.monotonic()
        self.state.scores[0] = self.held_out.score(pipeline, self._ask)
        validation = time.monotonic() - began
        self._ask()
        trial = self.config.model_copy(update={"steps": TRIAL, "output": str(self.work / "trial")})
        with accelerator_on(self.device, trial) as accelerator:
            run = TimedRun(trial, accelerator, sampler, self._say_trial, goes_on=lambda _: True, take=self._take)
            run.segmentation(starting_pipeline(trial).to(self.device))
        shutil.rmtree(self.work / "trial", ignore_errors=True)
        left = self.limit - self.seconds
        count = max(FEWEST_VALIDATIONS, min(MOST_VALIDATIONS, int(MEASURING * left / validation)))
        self.state.steps = max(FEWEST_STEPS, int((left - count * validation) / run.seconds_per_step()))
        self.state.every = max(1, self.state.steps // count)
        self._keep_state()

    def _paced(self) -> TrainingConfig:
        """The configuration for the number of steps that there is time for."""
        steps, every = self.state.steps, self.state.every
        rate, warmup = self.config.rate * min(1.0, steps / FULL_RATE), min(20, steps // 10)
        pace = {"rate": rate, "warmup": warmup, "steps": steps, "save_every": every, "validate_every": every}
        return self.config.model_copy(update=pace)

    # -- while learning

    def _goes_on(self, step: int) -> bool:
        """Whether there is time for another step, and hope."""
        self._ask()
        if self.seconds > self.limit and step >= FEWEST_STEPS:
            return False
        scores = sorted(self.state.scores.items())
        best = max(scores, key=lambda entry: entry[1].mean)[0]
        return sum(at > max(best, HOPEFUL * self.state.steps) for at, _ in scores) < PATIENCE

    def _take(self, step: int, pipeline: SDFSMISPipeline) -> None:
        """Measures weights, and keeps them where they are the best."""
        state = self.state
        score = self.held_out.score(pipeline, self._ask)
        state.scores[step] = score
        if score.beats(state.scores[state.best], state.scores[0]):
            parts = {
                f"{name}.{key}": value.contiguous()
                for name in self._changing()
                for key, value in getattr(pipeline, name).state_dict().items()
            }
            with atomic_output(self.work / "best.safetensors", ".safetensors") as part:
                save_file(parts, part)
            state.best = step
        self._keep_state()

    def _say(self, step: int, steps: int, text: str) -> None:
        best = self.state.scores[self.state.best].mean
        self.progress(step, steps, f"Learning: held out {self.state.scores[0].mean:.3f} → {best:.3f}")

    def _say_trial(self, step: int, steps: int, text: str) -> None:
        self.progress(step, steps, "Measuring how fast it learns")
        self._ask()

    def _changing(self) -> list[str]:
        return ["vae" if part == "decoder" else part for part in self.config.learned]

    def _keep_state(self) -> None:
        self.state.seconds = self.seconds
        self.state.save()

    def _ask(self) -> None:
        """Raises `Cancelled` where the caller wants no more."""
        if self.cancel is not None and self.cancel():
            self._keep_state()
            raise Cancelled("The adaptation was cancelled; the same request goes on with it.")

    # -- behind it

    def _finished(
        self, scans: list[AdaptationScan], learned: list[TrainingVolume], held: list[TrainingVolume]
    ) -> Adapted:
        state = self.state
        self.progress(0, 1, "Writing the report")
        write_supervoxel_picture(scans, self.output / "pictures" / "supervoxels.png")
        best = self._best()
        best.to(self.device)
        before = starting_pipeline(self.config).to(self.device)
        for kind in self.held_out.batches:
            batch, old = self.held_out.answers(before, kind)
            new = self.held_out.answers(best, kind)[1]
            write_before_after(batch, old, new, self.output / "pictures" / f"{kind}.png")
        with quiet():
            best.to("cpu", torch.float16 if self.config.half else torch.float32)
        about = self._provenance(weights_digest(best), learned, held)
        why = tuple(state.skipped.values())
        write_adaptation_report(self.output, about, why, state.scores, state.best, self.work / "log.jsonl")
        with atomic_output(self.output / "adaptation.json", ".json") as part:
            part.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        with quiet():
            best.save_pretrained(self.work / "pipeline")
        _move_in(self.work / "pipeline", self.output)
        shutil.rmtree(self.work, ignore_errors=True)
        return Adapted(
            folder=self.output,
            improved=bool(state.best),
            start=state.scores[0],
            kept=state.scores[state.best],
            steps=max(state.scores),
            seconds=self.seconds,
            scans=len(state.scans),
            skipped=why,
        )

    def _best(self) -> SDFSMISPipeline:
        """The pipeline of the kept weights, on the CPU."""
        if not self.state.best:
            return self.begun
        pipeline, parts = starting_pipeline(self.config), load_file(self.work / "best.safetensors")
        for name in self._changing():
            own = {key.removeprefix(f"{name}."): value for key, value in parts.items() if key.startswith(f"{name}.")}
            getattr(pipeline, name).load_state_dict(own)
        return pipeline

    def _provenance(self, digest: str, learned: list[TrainingVolume], held: list[TrainingVolume]) -> dict[str, Any]:
        """What weights are made of; of scans their hashes, since names of files may be those of patients."""
        state = self.state
        return {
            "version": __version__,
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "start": self.model,
            "start weights": state.request["model"],
            "weights": digest,
            "device": _device_name(self.device),
            "threads": torch.get_num_threads(),
            "minutes": state.request["minutes"],
            "seconds": round(self.seconds, 1),
            "steps": max(state.scores),
            "kept step": state.best,
            "seed": SEED,
            "learned from": [volume.name for volume in learned],
            "measured on": [volume.name for volume in held],
            "left out": len(state.skipped),
            "held-out soft Dice": {str(step): dict(score.kinds) for step, score in state.scores.items()},
            "recipe": self._paced().model_dump(mode="json", exclude={"cases", "output", "start", "held_out"}),
        }


def _check_output(output: Path, work: Path) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; name a folder to make.")
    if (output / "model_index.json").exists():
        raise InputError(f"{output} holds a pipeline already; name another folder, or remove it.")
    if output.exists() and any(output.iterdir()) and not (work / "state.json").exists():
        raise InputError(f"The folder {output} is not empty; name another one.")


def _only(config: TrainingConfig, kind: str) -> TrainingConfig:
    return config.model_copy(update={"mix": {kind: 1.0}, "synthetic_share": 0.0})


def _move_in(made: Path, output: Path) -> None:
    """A pipeline's parts into the folder, its index last: without it a folder is no pipeline."""
    for entry in sorted(made.iterdir(), key=lambda path: path.name == "model_index.json"):
        target = output / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
