"""`sdfsmis doctor`: whether everything that segmenting needs is installed and works."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import typer

from SDFSMISLib import __version__
from SDFSMISLib.console import one_line
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.volume import Geometry, Volume
from SDFSMISLib.support import SupportSet

__all__ = ["run_doctor"]

PACKAGES = ("torch", "diffusers", "transformers", "numpy", "SimpleITK")
GIB = 1 << 30
LEAST_MEMORY, LEAST_DISK = 2 * GIB, GIB  # free; a run with the built-in weights and a large scan stays below
SIDE = 128  # pixels of the self-test's slice
LEAST_DICE = 0.5  # of a bright disc, painted on the slice before: far below what any sound installation gets

Finding = tuple[str, str, str]
"""(what was checked, what was found, what the user should do: "" if all is well)"""


def run_doctor() -> bool:
    """Print a line for each check and the verdict; return whether all is well."""
    problems: list[str] = []
    for check in (_versions, _devices, _memory, _disk, _weights):
        for what, found, problem in _guarded(check):
            typer.echo(f"{'!' if problem else ' '} {what:<13} {found}")
            if problem:
                problems.append(problem)
    typer.echo("All good." if not problems else f"To do: {' '.join(problems)}")
    return not problems


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; an exception becomes one, too."""
    try:
        yield from check()
    except InputError as error:
        yield check.__name__.strip("_"), "not usable", one_line(error)
    except Exception as error:
        text = f"{type(error).__name__}: {one_line(error)}"
        yield (
            check.__name__.strip("_"),
            "failed",
            f"Install the package again (pip install --force-reinstall sdfsmis): {text}.",
        )


def _versions() -> Iterator[Finding]:
    yield "sdfsmis", __version__, ""
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""
    for package in PACKAGES:
        try:
            yield package, version(package), ""
        except PackageNotFoundError:
            yield package, "missing", f"Install {package} (pip install {package})."


def _devices() -> Iterator[Finding]:
    import torch

    yield "cpu", f"{torch.get_num_threads()} threads, {platform.processor() or platform.machine()}", ""
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield f"cuda:{index}", f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free", ""
    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi") is not None
        build = f"torch is built for {'CUDA ' + torch.version.cuda if torch.version.cuda else 'the CPU only'}"
        hint = "; an NVIDIA driver is installed: a CUDA build of torch would use it" if driver else ""
        yield "cuda", f"none found ({build}{hint})", ""


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    text = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    little = memory.available < LEAST_MEMORY
    yield "memory", text, f"Free some memory: {LEAST_MEMORY / GIB:.0f} GiB are needed." if little else ""


def _disk() -> Iterator[Finding]:
    for what, folder in (("disk here", Path.cwd()), ("disk for temp", Path(tempfile.gettempdir()))):
        usage = shutil.disk_usage(folder)
        problem = f"Free some of the disk that holds {folder}." if usage.free < LEAST_DISK else ""
        yield what, f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free ({folder})", problem


def _weights() -> Iterator[Finding]:
    from SDFSMISLib.evaluation.metrics import dice
    from SDFSMISLib.inference import Segmenter
    from SDFSMISLib.model.loading import weights_digest

    segmenter = Segmenter.from_pretrained()
    parameters = sum(part.numel() for network in _networks(segmenter) for part in network.parameters())
    yield "weights", f"{segmenter.name}, {parameters / 1e6:.1f} million, {weights_digest(segmenter.pipeline)}", ""
    scan, disc = _phantom()
    painted = Volume(disc.voxels * (np.arange(3) == 0)[:, None, None], disc.geometry)
    support = SupportSet.from_labelmap(scan, painted, slices=[0], axis=0)
    segmentation = segmenter.segment(scan, support, slices=[1])
    score = dice(segmentation.labelmap.voxels[1] == 1, disc.voxels[1] == 1)
    text = f"one slice in {segmentation.seconds:.2f} s on {segmenter.pipeline.device}, Dice {score:.2f}"
    problem = "The self-test found the wrong place: install torch and this package again." if score < LEAST_DICE else ""
    yield "self-test", text, problem


def _networks(segmenter: object) -> list:
    import torch

    parts = segmenter.pipeline.components.values()  # type: ignore[attr-defined]
    return [part for part in parts if isinstance(part, torch.nn.Module)]


def _phantom() -> tuple[Volume, Volume]:
    """A bright disc in three slices of a larger grey one, with a little noise; and the disc as a labelmap."""
    geometry = Geometry((3, SIDE, SIDE), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    body, disc = np.hypot(rows, columns) < 0.45 * SIDE, np.hypot(rows - 10, columns + 12) < 0.15 * SIDE
    noise = np.random.default_rng(0).normal(0, 10, geometry.shape)
    voxels = (noise + 400 * body + 400 * disc).astype(np.float32)
    return Volume(voxels, geometry), Volume(np.repeat(disc[None].astype(np.uint8), 3, axis=0), geometry)
