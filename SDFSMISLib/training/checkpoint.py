"""Where a training run stands, in one safetensors file: networks, their moving average, optimiser, step."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from SDFSMISLib.errors import InputError
from SDFSMISLib.images.files import atomic_output

__all__ = ["Checkpoint"]


class Checkpoint:
    """Keeps and restores a run. The file appears whole or not at all, so a run may be killed at any moment.

    Args:
        path: of the safetensors file; never a pickle.
        networks: by a name that goes into the file, such as `network.unet` or `average.unet`.
        optimizer: of which every tensor of its state is kept.
    """

    def __init__(self, path: Path, networks: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        self.path, self.networks, self.optimizer = path, networks, optimizer

    def save(self, step: int, extra: dict[str, float] | None = None) -> None:
        """Keep the run as it is behind `step` steps; `extra` are numbers that come back from `load`."""
        tensors: dict[str, torch.Tensor] = {}
        for name, network in self.networks.items():
            tensors |= {f"{name}.{key}": value.contiguous() for key, value in network.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value.contiguous() for key, value in moments.items()}
        with atomic_output(self.path, ".safetensors") as part:
            save_file(tensors, part, metadata={"step": str(step), "extra": json.dumps(extra or {})})

    def load(self) -> tuple[int, dict[str, float]]:
        """(the step to go on with, what was kept as extra); step 0 where there is no checkpoint.

        Raises:
            InputError: where the file is of another configuration, or damaged.
        """
        if not self.path.exists():
            return 0, {}
        try:
            with safe_open(self.path, "pt") as kept:
                metadata = kept.metadata()
            tensors = load_file(self.path)
            for name, network in self.networks.items():
                network.load_state_dict(_under(tensors, f"{name}."))
            state = self.optimizer.state_dict()
            for key, value in _under(tensors, "optimizer.").items():
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


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
