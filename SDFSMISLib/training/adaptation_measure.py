"""How well weights do on held-out supervoxels: always the same ones, so that two weights can be compared.

Along a scan they are carried from slice to slice as the segmenter does it (`Propagation`); across scans episodes tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from SDFSMISLib.errors import InputError
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.training.adaptation_propagation import Propagation
from SDFSMISLib.training.batch import EpisodeBatch
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.episodes import EpisodeSampler
from SDFSMISLib.training.learner import EpisodeLearner

__all__ = ["HeldOut", "Score"]

FIRST_BATCH = 20_000_000  # numbers of batches that no training draws
BATCHES = {"propagate": 5, "cross": 5}
SIZE = 8  # episodes of a batch
WORSE = 0.003  # by which a kind may fall below the start while the mean rises: what chance makes of so few of them


@dataclass(frozen=True)
class Score:
    """Mean soft Dice on held-out supervoxels by kind, 1 at best; of episodes without the target how little was found,
    so that it may fall below 0."""

    kinds: Mapping[str, float]

    @property
    def mean(self) -> float:
        return sum(self.kinds.values()) / len(self.kinds)

    def beats(self, best: Score, start: Score) -> bool:
        """Whether these weights are to be kept in place of the best so far: better in the mean, and in no kind worse
        than the weights at the start."""
        kept_up = all(value >= start.kinds[kind] - WORSE for kind, value in self.kinds.items())
        return kept_up and self.mean > best.mean


class HeldOut:
    """What is measured on, drawn once."""

    def __init__(
        self, samplers: Mapping[str, EpisodeSampler], propagation: Propagation, config: TrainingConfig
    ) -> None:
        """
        Args:
            samplers: of held-out targets, by kind of episode.
            propagation: the supervoxels that the kind `propagate` is told by; where there are none, episodes do.
            config: of the training; gives the losses.
        """
        self.propagation = propagation
        self.config = config.model_copy(update={"losses": {"dice": 1.0}})
        self.batches: dict[str, list[EpisodeBatch]] = {}
        for kind, sampler in samplers.items():
            try:
                drawn = [sampler.batch(SIZE, FIRST_BATCH + number) for number in range(BATCHES[kind])]
            except InputError:  # none of this kind shows a target well enough
                continue
            self.batches[kind] = drawn
        if not self.batches:
            raise InputError("The scans show too little to measure on; give more scans, or larger ones.")

    @torch.no_grad()
    def score(self, pipeline: SDFSMISPipeline, ask: Callable[[], None] = lambda: None) -> Score:
        """What these weights reach; the training's random numbers are not touched.

        Args:
            ask: called again and again; may raise.
        """
        learner = EpisodeLearner(pipeline, self.config)
        with torch.random.fork_rng():
            found = {}
            for kind, batches in self.batches.items():
                if kind == "propagate" and self.propagation.tasks:
                    found[kind] = self.propagation.score(pipeline, ask)
                    continue
                torch.manual_seed(self.config.seed)
                lost = 0.0
                for batch in batches:
                    ask()
                    lost += float(learner(batch).parts["dice"])
                found[kind] = 1 - lost / len(batches)
        return Score(found)

    @torch.no_grad()
    def answers(self, pipeline: SDFSMISPipeline, kind: str) -> tuple[EpisodeBatch, torch.Tensor]:
        """The first batch of a kind and its probabilities (B, R, R), for pictures."""
        batch = self.batches[kind][0]
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            predicted = EpisodeLearner(pipeline, self.config)(batch).predicted
        return batch, pipeline.decode(predicted).mean(1).cpu()
