"""Torch build: which of PyTorch's builds pip installs on this computer, and what to do where another fits better."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISPanel.command import run_command

__all__ = ["PAGE", "TorchBuild", "graphics_cards", "usual_build"]

PAGE = "https://pytorch.org/get-started/locally"  # names the addresses of the other builds
GB = 10**9
PATIENCE = 10.0  # seconds; a driver that is ill never answers


@dataclass(frozen=True)
class TorchBuild:
    """The build that pip takes by itself.

    Attributes:
        said: what is to be known of it, in sentences; "" = nothing.
        download, disk: bytes that the whole environment takes with it, roughly.
    """

    said: str
    download: int
    disk: int


def usual_build(cards: Sequence[str], system: str = "") -> TorchBuild:
    """The build on a computer.

    Args:
        cards: names of its NVIDIA cards.
        system: as ``platform.system()`` gives it; "" = of this computer.
    """
    system = system or platform.system()
    if system == "Linux":
        said = (
            "The usual build of PyTorch for Linux holds what NVIDIA cards need, and none was found here; a smaller one "
            f"is named on {PAGE}: give its address as pip option, --extra-index-url ADDRESS."
        )
        return TorchBuild("" if cards else said, 4 * GB, 9 * GB)
    if system == "Windows" and cards:
        said = (
            f"The usual build of PyTorch for Windows computes on the processor. To use the {cards[0]}, take the "
            f"address of a CUDA build from {PAGE}, give it as pip option, --extra-index-url ADDRESS, and install again."
        )
        return TorchBuild(said, GB // 2, 3 * GB)
    return TorchBuild("", GB // 2, 3 * GB)


def graphics_cards(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the NVIDIA cards of this computer, as their driver gives them; none where it has no driver, or
    one that does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    end = time.monotonic() + PATIENCE
    try:
        words = [program, "--query-gpu=name", "--format=csv,noheader"]
        done = run_command(words, variables, cancel=lambda: time.monotonic() > end)
    except (InputError, Cancelled):
        return ()
    return tuple(line.strip() for line in done.lines if line.strip()) if done.status == 0 else ()
