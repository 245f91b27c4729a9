"""Small scans for tests of inference and commands, and a stand-in for a pipeline that knows what is right on them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from SDFSMISLib.images.volume import Geometry, Volume
from SDFSMISLib.model.unet import Hints, SupportBank

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
BODY, ORGAN = 100, 200  # intensities; 0 around the body


def ball_scan(
    shape: tuple[int, int, int] = (12, 40, 40),
    spacing: tuple[float, float, float] = (1.0, 1.0, 2.0),
    gap: tuple[int, ...] = (),
) -> tuple[Volume, Volume]:
    """An ellipsoid in a body, off the middle; and its labelmap, label 1 named "ball".

    The ellipsoid spans half of each axis, and is missing on the slices in ``gap``.
    """
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"), axis=-1)
    body = (np.abs(places[..., 1:]) < 0.95).all(axis=-1)
    ball = np.linalg.norm((places - (0.0, -0.2, 0.15)) / (0.55, 0.4, 0.5), axis=-1) <= 1
    ball[list(gap)] = False
    geometry = Geometry(shape, spacing, (-20.0, 15.0, 7.0), IDENTITY)
    voxels = (BODY * body + (ORGAN - BODY) * ball).astype(np.int16)
    return Volume(voxels, geometry), Volume(ball.astype(np.uint8), geometry, segment_names={1: "ball"})


def painted_on(labelmap: Volume, *indices: int, axis: int = 0) -> Volume:
    """The labelmap with nothing but these slices."""
    voxels = np.zeros_like(labelmap.voxels)
    for index in indices:
        place = (slice(None),) * axis + (index,)
        voxels[place] = labelmap.voxels[place]
    return Volume(voxels, labelmap.geometry, segment_names=labelmap.segment_names)


class BrightPipeline:
    """In place of a pipeline: answers with whatever is bright. It keeps a record of what it was asked.

    ``batches`` has (queries, shots of the bank) for each pass, ``painted_pixels`` the pixels painted on all shots of
    each bank, ``encoded`` the number of images encoded beside supports. ``answer`` is the probability of what is
    bright.
    """

    device = torch.device("cpu")
    takes_neighbours = sees_contrast = True
    takes_known = takes_ahead = False

    def __init__(self, resolution: int = 40, answer: float = 1.0) -> None:
        self.answer = answer
        self.config = SimpleNamespace(resolution=resolution)
        self.components: dict[str, object] = {}
        self.batches: list[tuple[int, int]] = []
        self.painted_pixels: list[int] = []
        self.encoded = 0

    def for_inference(self) -> BrightPipeline:
        return self

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded += len(images)
        return images

    def encode_support(
        self, images: torch.Tensor, masks: torch.Tensor, conditions: dict[str, torch.Tensor] | None = None
    ) -> SupportBank:
        tasks, shots = masks.shape[:2]
        assert images.shape[:2] == (tasks, shots)
        self.painted_pixels.append(int(masks.sum()))
        nothing = {"layer": torch.zeros(tasks, shots, 1)}
        token = conditions or {"layer": torch.zeros(tasks, 1, 1)}
        return SupportBank(nothing, nothing, token, torch.zeros(tasks, shots, 1), torch.zeros(tasks, shots, 1))

    def hints(self, images: torch.Tensor, bank: SupportBank, *neighbours: torch.Tensor | None) -> Hints:
        return Hints()

    def segment(self, latents: torch.Tensor, bank: SupportBank, hints: Hints | None = None) -> torch.Tensor:
        self.batches.append((len(latents), bank.shots))
        return self.answer * (latents > 0.5).float()
