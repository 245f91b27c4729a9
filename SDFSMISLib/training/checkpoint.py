"""What a training run writes while it goes on: the checkpoint it can resume from, its log, and pictures of episodes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import atomic_output
from SDFSMISLib.training.volumes import EpisodeBatch


class Checkpoint:
    """Saves and restores a run. The file appears whole or not at all, so a run may be killed at any moment.

    Args:
        path: of the safetensors file; never a pickle.
        networks: by their names in the file, such as `network.unet` or `average.unet`.
        optimizer: every tensor of its state is saved.
    """

    def __init__(self, path: Path, networks: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        self.path, self.networks, self.optimizer = path, networks, optimizer

    def save(self, step: int, extra: dict[str, float] | None = None) -> None:
        """Save the run as it is after `step` steps; `load` gives the `extra` numbers back."""
        tensors: dict[str, torch.Tensor] = {}
        for name, network in self.networks.items():
            tensors |= {f"{name}.{key}": value.contiguous() for key, value in network.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value.contiguous() for key, value in moments.items()}
        with atomic_output(self.path, ".safetensors") as part:
            save_file(tensors, part, metadata={"step": str(step), "extra": json.dumps(extra or {})})

    def load(self) -> tuple[int, dict[str, float]]:
        """(the step to go on with, the extra numbers); step 0 if there is no checkpoint.

        Raises:
            InputError: if the file is of another configuration, or damaged.
        """
        if not self.path.exists():
            return 0, {}
        try:
            with safe_open(self.path, "pt") as kept:
                metadata = kept.metadata()
            tensors = load_file(self.path)
            for name, network in self.networks.items():
                network.load_state_dict(_without_prefix(tensors, f"{name}."))
            state = self.optimizer.state_dict()
            for key, value in _without_prefix(tensors, "optimizer.").items():
                index, _, name = key.partition(".")
                state["state"].setdefault(int(index), {})[name] = value
            self.optimizer.load_state_dict(state)
            return int(metadata["step"]), json.loads(metadata["extra"])
        except Exception as error:  # whatever the libraries below make of another file
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"The checkpoint {self.path} does not fit this configuration ({reason}); name another output folder, "
                "or remove it to begin anew."
            ) from error


def _without_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


LOG_EVERY = 50  # steps


class Log:
    """Means over some steps, as lines of `log.jsonl` and, where that package is installed, for tensorboard."""

    def __init__(self, output: Path, writes: bool) -> None:
        self.path, self.writes = output / "log.jsonl", writes
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.began, self.steps, self.text = time.monotonic(), 0, ""
        self.board = _tensorboard(output) if writes else None

    def add(self, step: int, parts: dict[str, torch.Tensor], rate: float, is_last: bool) -> str:
        """Adds a step's numbers; returns loss and overlap of the last line that was written, in words.

        The numbers stay on their device until a line is written, so that the device need not be waited for.
        """
        self.steps += 1
        for name, value in parts.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1
        if step % LOG_EVERY == 0 or is_last:
            means = {name: float(self.sums[name]) / self.counts[name] for name in self.sums}
            seconds = (time.monotonic() - self.began) / self.steps
            self.write({"step": step, "seconds": seconds, "rate": rate} | means)
            self.text = ", ".join(f"{name} {means[name]:.3f}" for name in ("loss", "overlap") if name in means)
            self.sums, self.counts = {}, {}
        return self.text

    def write(self, record: dict[str, float]) -> None:
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as log:
            numbers = {name: x if isinstance(x, int) else float(f"{x:.5g}") for name, x in record.items()}
            log.write(json.dumps(numbers) + "\n")
        if self.board is not None:
            for name, value in record.items():
                self.board.add_scalar(name, value, int(record["step"]))
            self.board.flush()


def _tensorboard(output: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(output / "tensorboard"))


TRUE_COLOUR, PREDICTED_COLOUR = (255, 214, 0), (0, 229, 255)
MAX_ROWS = 8


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
    for number in range(min(MAX_ROWS, len(probabilities))):
        supports = zip(batch.support_images[number], batch.support_masks[number], strict=True)
        query = batch.query_images[number]
        tiles = [_with_outline(image, mask, TRUE_COLOUR) for image, mask in supports]
        tiles.append(_with_outline(query, batch.query_masks[number], TRUE_COLOUR))
        tiles.append(_with_outline(query, (probabilities[number] > 0.5).float(), PREDICTED_COLOUR))
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows)


def _with_outline(image: torch.Tensor, mask: torch.Tensor, colour: tuple[int, int, int]) -> np.ndarray:
    """A grey image (R, R) in [-1, 1] as colours, the border of its mask drawn inside."""
    grey = ((image.float().cpu().numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    inside = np.pad(mask.float().cpu().numpy() > 0.5, 1)
    middle = inside[1:-1, 1:-1]
    whole = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    picture[middle & ~whole] = colour
    return picture
