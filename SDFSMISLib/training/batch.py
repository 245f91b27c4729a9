"""A batch of episodes as the networks take it, and what its episodes have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from SDFSMISLib.training.config import TrainingConfig

__all__ = ["Before", "EpisodeBatch", "Plan"]

SHOTS = {1: 0.45, 2: 0.2, 3: 0.15, 4: 0.1, 5: 0.1}  # how often so many slices are painted


@dataclass(frozen=True)
class EpisodeBatch:
    """B episodes with S supports each on an R x R grid.

    Attributes:
        support_images: (B, S, R, R) in [-1, 1]. support_masks: (B, S, R, R), 0 or 1.
        query_images: (B, R, R). query_masks: (B, R, R), 0 or 1.
        painted: how many of the S supports are painted by hand: they give the condition token; the last of the others
            is the query's finished neighbour.
        displacements: (B, R, R, 2), see `registration.displacement`: from the last support to the query. None where no
            support is a finished neighbour.
        before: what a network needs to make the last support's mask itself; None where it should not.
        brought: whether the last support is the query itself, with a mask that was brought from another scan.
    """

    support_images: torch.Tensor
    support_masks: torch.Tensor
    query_images: torch.Tensor
    query_masks: torch.Tensor
    painted: int
    displacements: torch.Tensor | None = None
    before: Before | None = None
    brought: bool = False


@dataclass(frozen=True)
class Before:
    """The slices before the last supports of B episodes, from which a network may predict those supports' masks.

    Attributes:
        images: (B, R, R). masks: (B, R, R), 0 or 1. displacements: (B, R, R, 2), from here to the last support.
        wanted: bool (B,); False: the last support's mask stays as it is.
    """

    images: torch.Tensor
    masks: torch.Tensor
    displacements: torch.Tensor
    wanted: torch.Tensor


@dataclass(frozen=True)
class Plan:
    """What all episodes of a batch have in common; see `TrainingConfig`."""

    kind: str
    shots: int
    painted: int
    rolled: bool
    swapped: bool

    @classmethod
    def drawn(cls, rng: np.random.Generator, config: TrainingConfig, late: bool) -> Plan:
        kinds: list[str] = list(config.mix)
        weights = np.array(list(config.mix.values()))
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        shots = int(rng.choice(list(SHOTS), p=list(SHOTS.values())))
        painted = 1 if kind != "propagate" else int(rng.choice([1, 2], p=[0.8, 0.2]))
        rolled = bool(kind == "propagate" and rng.random() < config.rollout)
        return cls(kind, shots, painted, rolled, bool(late and rng.random() < config.swapped))
