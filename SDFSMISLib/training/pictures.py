"""Pictures of episodes, for a person to see what is being learned, and how far it has come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from SDFSMISLib.images.files import atomic_output
from SDFSMISLib.training.batch import EpisodeBatch

__all__ = ["episode_picture", "write_episodes"]

TRUTH, ANSWER = (255, 214, 0), (0, 229, 255)
ROWS = 8


def write_episodes(batch: EpisodeBatch, probabilities: torch.Tensor, path: Path) -> None:
    """The picture of `episode_picture` as a PNG, whole or not at all."""
    with atomic_output(path, ".png") as part:
        Image.fromarray(episode_picture(batch, probabilities)).save(part)


def episode_picture(batch: EpisodeBatch, probabilities: torch.Tensor) -> np.ndarray:
    """A row for each of the first episodes: the supports with their masks, the query with the true mask, and with the
    answer.

    Args:
        probabilities: (B, R, R), the answers.

    Returns:
        uint8 (rows * R, (S + 2) * R, 3).
    """
    rows = []
    for number in range(min(ROWS, len(probabilities))):
        supports = zip(batch.support_images[number], batch.support_masks[number], strict=True)
        query = batch.query_images[number]
        tiles = [_outlined(image, mask, TRUTH) for image, mask in supports]
        tiles.append(_outlined(query, batch.query_masks[number], TRUTH))
        tiles.append(_outlined(query, (probabilities[number] > 0.5).float(), ANSWER))
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows)


def _outlined(image: torch.Tensor, mask: torch.Tensor, colour: tuple[int, int, int]) -> np.ndarray:
    """A grey image (R, R) in [-1, 1] as colours, the border of its mask drawn inside."""
    grey = ((image.float().cpu().numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    inside = np.pad(mask.float().cpu().numpy() > 0.5, 1)
    middle = inside[1:-1, 1:-1]
    whole = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    picture[middle & ~whole] = colour
    return picture
