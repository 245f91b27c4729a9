"""Whether two checkouts give the same results: runs the commands of `sdfsmis`, and compares what they wrote.

    python Testing/compare_commands.py record --output before
    python Testing/compare_commands.py record --output after --checkout ../other-checkout
    python Testing/compare_commands.py compare before after

It uses the command line and files alone, so that it serves whatever becomes of the code behind them. The scans are made
here, with a fixed seed; the weights are the built-in ones, and tiny ones. Compared are voxels, geometry, names of
segments, probabilities, tables, figures and weights; not provenance, messages, pictures, times, places and versions.
Both records belong on the same machine, with the same packages. It takes some minutes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import SimpleITK

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 300.0  # seconds for one command
AT_ONCE = 2
ORGANS = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}  # label values of the benchmark's MR data set
SCANS = 15  # the least that the benchmark cuts into folds
UNTOLD = {
    "seconds",
    "scan",
    "error",
    "date",
    "about",
    "version",
    "weights",
    "weights_sha256",
    "command",
    "transformers_version",
}
IMAGES = (".nii.gz", ".nii", ".nrrd", ".mha")
MODEL_DIGEST = re.compile(r" [0-9a-f]{8}$")  # behind a method's name

# -- scans, labels and networks ---------------------------------------------------------------------------------------


def phantom(shape: tuple[int, int, int], seed: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A body with two organs, label 1 bright and label 2 dark, a bright bystander and some texture; and the labels."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    wave = np.sin(7 * x + shift) * np.cos(5 * y) + 0.5 * np.sin(3 * z)
    voxels = np.where((x / 0.9) ** 2 + (y / 0.8) ** 2 < 1, 100 + 6 * wave, 0.0)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[((x + 0.35 + shift) / 0.35) ** 2 + ((y - 0.05) / 0.4) ** 2 + (z / 0.7) ** 2 < 1] = 1
    labels[((x - 0.4) / 0.25) ** 2 + ((y - 0.2 + shift) / 0.3) ** 2 + ((z - 0.1) / 0.6) ** 2 < 1] = 2
    voxels[labels == 1] += 60
    voxels[labels == 2] -= 55
    voxels[((x - 0.05) / 0.1) ** 2 + ((y + 0.5) / 0.1) ** 2 < 1] = 190
    return np.rint(voxels + rng.normal(0, 5, shape)).astype(np.int16), labels


def image(voxels: np.ndarray, spacing: Sequence[float], turned: bool = False) -> SimpleITK.Image:
    made = SimpleITK.GetImageFromArray(voxels)
    made.SetSpacing(spacing)
    made.SetOrigin((-31.5, 12.25, 40.0))
    if turned:
        made.SetDirection((-0.8, 0.6, 0.0, -0.6, -0.8, 0.0, 0.0, 0.0, 1.0))
    return made


def write(path: Path, made: SimpleITK.Image) -> None:
    SimpleITK.WriteImage(made, str(path), useCompression=True)


def named(made: SimpleITK.Image, names: dict[int, str]) -> SimpleITK.Image:
    """A labelmap whose segments have names, as 3D Slicer writes them."""
    for number, (label, name) in enumerate(names.items()):
        fields = {"ID": f"Segment_{label}", "Name": name, "LabelValue": str(label), "Layer": "0"}
        for key, value in fields.items():
            made.SetMetaData(f"Segment{number}_{key}", value)
    return made


def write_dicom(folder: Path, made: SimpleITK.Image) -> None:
    folder.mkdir()
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(made.GetDepth()):
        one = made[:, :, index : index + 1]
        place = made.TransformIndexToPhysicalPoint((0, 0, index))
        tags = {
            "0008|0060": "CT",
            "0020|000d": "1.2.826.1",
            "0020|000e": "1.2.826.1.1",
            "0008|0018": f"1.2.826.1.1.{index + 1}",
            "0020|0013": str(index),
            "0020|0032": "\\".join(f"{value:.6f}" for value in place),
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        for key, value in tags.items():
            one.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{index:03}.dcm"))
        writer.Execute(one)


def write_scans(folder: Path) -> None:
    """Scans that are painted on and others, in several formats and positions."""
    spacing = (1.5, 1.5, 3.0)
    voxels, labels = phantom((10, 44, 48), 1)
    scan = image(voxels, spacing, turned=True)
    write(folder / "ct.nii.gz", scan)
    write_dicom(folder / "dicom", image(voxels, spacing))
    other, _ = phantom((8, 40, 52), 2, shift=0.1)
    write(folder / "other.nii.gz", image(other[::-1].copy(), (1.4, 1.6, 3.5)))
    third, _ = phantom((7, 48, 40), 3, shift=-0.08)
    (folder / "scans").mkdir()
    write(folder / "scans" / "third.nrrd", image(third, (1.6, 1.5, 4.0)))
    write(folder / "scans" / "fourth.mha", image(np.moveaxis(third, 0, 1).copy(), (1.6, 4.0, 1.5)))
    write(folder / "full.nii.gz", image(labels, spacing, turned=True))
    painted = np.zeros_like(labels)
    painted[5] = labels[5]
    write(folder / "painted.seg.nrrd", named(image(painted, spacing, turned=True), {1: "liver", 2: "stomach"}))
    write(folder / "painted_dicom.nii.gz", image((painted == 1).astype(np.uint8), spacing))


def write_cases(folder: Path) -> None:
    """Two scans with labels, to measure on and to train with."""
    cases = []
    for number in range(2):
        voxels, labels = phantom((8, 32, 32), 10 + number, shift=0.05 * number)
        files = {"image": f"case{number}.nii.gz", "labels": f"case{number}_labels.nii.gz"}
        write(folder / files["image"], image(voxels, (2, 2, 4)))
        write(folder / files["labels"], image(labels, (2, 2, 4)))
        about = {"id": f"phantoms/{number}", "group": "phantoms", "modality": "CT", "split": "test"}
        cases.append(about | files | {"targets": {"liver": 1, "stomach": 2}})
    cases.append(cases[0] | {"id": "phantoms/train", "split": "train"})
    content = {"groups": {"phantoms": {"modality": "CT", "may_train_shipped_weights": True}}, "cases": cases}
    (folder / "cases.json").write_text(json.dumps(content), encoding="utf-8")


def write_benchmark(folder: Path) -> None:
    """Scans with four organs: the least that the benchmark takes."""
    places = {
        "liver": (slice(2, 7), slice(8, 16), slice(6, 14)),
        "spleen": (slice(3, 6), slice(8, 14), slice(20, 26)),
        "right kidney": (slice(5, 9), slice(18, 24), slice(8, 13)),
        "left kidney": (slice(4, 8), slice(18, 24), slice(20, 25)),
    }
    cases = []
    for number in range(1, SCANS + 1):
        rng, labels = np.random.default_rng(100 + number), np.zeros((10, 32, 32), dtype=np.uint8)
        for organ, (slices, rows, columns) in places.items():
            shift = number % 3 - 1
            labels[slices, rows.start + shift : rows.stop + shift, columns] = ORGANS[organ]
        voxels = np.zeros(labels.shape)
        voxels[:, 3:29, 3:29] = 100 + rng.normal(0, 5, (10, 26, 26))
        voxels[labels > 0] += 100 + 10 * labels[labels > 0]
        files = {"image": f"chaos_t2_{number}.nii.gz", "labels": f"chaos_t2_{number}_labels.nii.gz"}
        write(folder / files["image"], image(voxels.astype(np.int16), (1.25, 1.25, 7.7)))
        write(folder / files["labels"], image(labels, (1.25, 1.25, 7.7)))
        cases.append(
            {"id": f"chaos_t2/chaos_t2_{number}", "group": "chaos_t2", "targets": ORGANS, "split": "test"} | files
        )
    content = {"groups": {"chaos_t2": {}}, "cases": cases}
    (folder / "benchmark.json").write_text(json.dumps(content), encoding="utf-8")


def write_training(folder: Path) -> None:
    """A training of a few steps of tiny networks, on synthetic volumes and the cases'."""
    settings = {
        "cases": "inputs/cases.json",
        "output": "training",
        "network": {"resolution": 32, "channels": [16, 16]},
        "autoencoder_steps": 2,
        "steps": 4,
        "batch": 1,
        "warmup": 0,
        "synthetic_count": 1,
        "half": False,
        "save_every": 2,
        "workers": 0,
    }
    (folder / "tiny.json").write_text(json.dumps(settings), encoding="utf-8")


def write_sources(folder: Path) -> None:
    """Stable Diffusion and DINOv2 as their libraries save them, tiny and with random weights."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(5)
    sides = ["CrossAttn{}Block2D"] * 3 + ["{}Block2D"]
    UNet2DConditionModel(
        sample_size=16,
        down_block_types=[side.format("Down") for side in sides],
        up_block_types=[side.format("Up") for side in sides[::-1]],
        block_out_channels=(16, 32, 32, 32),
        cross_attention_dim=32,
        norm_num_groups=8,
    ).save_pretrained(folder / "stable-diffusion" / "unet")
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=128,
    ).save_pretrained(folder / "stable-diffusion" / "vae")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14, "image_size": 224}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder / "dinov2")
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "dinov2" / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")


# -- commands ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One command; `{out}` in its words is its own folder of results, `{server}` the address of the backend."""

    name: str
    words: str


PAINTED = "segment --support inputs/ct.nii.gz --mask inputs/painted.seg.nrrd"
FULL = "segment --support inputs/ct.nii.gz --mask inputs/full.nii.gz"
DICOM = "segment --support inputs/dicom --mask inputs/painted_dicom.nii.gz"
SUPPORT_SET = "results/segment-propagate/support.safetensors"
OTHER, LABEL, ALONE = "--query inputs/other.nii.gz", "--label 1", "--strategy independent"
INTO, SOFT, SEGMENTS = "--output {out}/a.nii.gz", "--probabilities {out}/p.nii.gz", "--output {out}/a.seg.nrrd"
SOFT_NRRD = "--probabilities {out}/p.nrrd"
EVALUATE = "evaluate --cases inputs/cases.json --output {out} --protocol"
BENCHMARK = "benchmark run --data chaos_t2 --cases inputs/benchmark.json --config none --fold 0 --output {out}"
TABLE = "benchmark table --results results/benchmark --format csv --no-published --output {out}/table.csv"
CONVERT = "convert --stable-diffusion inputs/stable-diffusion --dinov2 inputs/dinov2 --resolution 64"

CHAINS: tuple[tuple[Step, ...], ...] = (
    (
        Step("train", "train --config inputs/tiny.json --output {out}"),
        Step("segment-trained", f"{PAINTED} {LABEL} --model results/train/pipeline {INTO}"),
    ),
    (Step("benchmark", BENCHMARK), Step("benchmark-table", TABLE)),
    (
        Step("convert", f"{CONVERT} --output {{out}}/pipeline"),
        Step("segment-converted", f"{PAINTED} {LABEL} {ALONE} --model results/convert/pipeline {INTO} {SOFT}"),
    ),
    (Step("evaluate-same-volume", f"{EVALUATE} same-volume --baselines copy,growcut,registration"),),
    (Step("evaluate-three-shots", f"{EVALUATE} same-volume --shots 3 --baselines copy"),),
    (Step("evaluate-cross-volume", f"{EVALUATE} cross-volume --baselines copy --diagnostics"),),
    (Step("evaluate-field", f"{EVALUATE} field --baselines copy"),),
    (
        Step("segment-propagate", f"{PAINTED} {LABEL} {INTO} {SOFT} --save-support-set {{out}}/support.safetensors"),
        Step("segment-support-set", f"segment --support-set {SUPPORT_SET} {OTHER} {INTO}"),
    ),
    (Step("segment-independent", f"{PAINTED} {LABEL} {ALONE} {INTO} {SOFT}"),),
    (Step("segment-labels", f"{PAINTED} {SEGMENTS} {SOFT_NRRD}"),),
    (Step("segment-other-axis", f"{FULL} --slice 22 --axis 1 {LABEL} --output {{out}}/a.mha"),),
    (Step("segment-several-slices", f"{FULL} --slice 3 5 7 --label 2 {INTO}"),),
    (Step("segment-region-full", f"{PAINTED} --label 2 --region full {INTO}"),),
    (Step("segment-clean", f"{PAINTED} {LABEL} --keep-largest --smooth 2 {INTO}"),),
    (Step("segment-threshold", f"{PAINTED} {LABEL} --threshold 0.2 {INTO}"),),
    (Step("segment-query", f"{PAINTED} {OTHER} {SEGMENTS} {SOFT_NRRD}"),),
    (Step("segment-query-independent", f"{PAINTED} {OTHER} {ALONE} {INTO} {SOFT}"),),
    (
        Step(
            "segment-cohort",
            f"{PAINTED} --query inputs/ct.nii.gz inputs/scans --jobs 2 --output {{out}}/ --probabilities {{out}}/",
        ),
    ),
    (Step("segment-dicom", f"{DICOM} {INTO} {SOFT}"),),
    (Step("segment-dry-run", f"{PAINTED} --dry-run {INTO}"),),
    (Step("segment-bad-slice", f"{FULL} --slice 99 {INTO}"),),
    (
        Step("server-propagate", f"{PAINTED} {LABEL} --server {{server}} {INTO} {SOFT}"),
        Step("server-query", f"{PAINTED} {LABEL} --server {{server}} {OTHER} {INTO} {SOFT}"),
    ),
)
ON_RAY = Step("segment-ray", f"{PAINTED} {LABEL} {OTHER} --engine ray --jobs 1 --output {{out}}/")

STARTER = """
import json, os, sys
from {module} import {function}
from SDFSMISLib import Segmenter, SupportSet, Volume  # what commands share is imported once

for line in sys.stdin:
    words, messages = json.loads(line)
    child = os.fork()
    if child == 0:
        there = os.open(messages, os.O_WRONLY | os.O_CREAT)
        for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), there, there)):
            os.dup2(file, number)
        code = {function}(words)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""A program that runs command lines one after the other, each in a process of its own that has all imports already."""


class Recording:
    """Runs commands of a checkout in a folder, and keeps what they write."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.folder, self.outcomes = folder, dict[str, dict[str, float]]()
        text = (checkout / "pyproject.toml").read_text(encoding="utf-8")
        script = re.search(r'^sdfsmis = "([\w.]+):(\w+)"', text, re.MULTILINE)  # wherever the code has moved
        if script is None:
            raise SystemExit(f"{checkout}/pyproject.toml names no program sdfsmis; name a checkout of this project.")
        self.starter = STARTER.format(module=script[1], function=script[2])
        self.program = f"import sys; from {script[1]} import {script[2]}; sys.exit({script[2]}())"
        paths = [str(checkout), str(checkout / "SDFSMIS")]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        calm = {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
        self.environment = {**os.environ, **threads, **calm, "PYTHONPATH": os.pathsep.join(paths)}
        for name in ("SDFSMIS_TOKEN", "RAY_ADDRESS"):
            self.environment.pop(name, None)

    def run_chains(self, chains: Queue[tuple[Step, ...]], server: str) -> None:
        """Works through chains of steps until none is left."""
        with self._started(self.starter, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            while not chains.empty():
                for step in chains.get():
                    out = f"results/{step.name}"
                    (self.folder / out).mkdir(parents=True)
                    words = [word.format(out=out, server=server) for word in step.words.split()]
                    began = time.monotonic()
                    process.stdin.write(json.dumps([words, f"messages/{step.name}.txt"]).encode() + b"\n")
                    process.stdin.flush()
                    code = int(process.stdout.readline())
                    seconds = round(time.monotonic() - began, 1)
                    self.outcomes[step.name] = {"code": code, "seconds": seconds}
                    print(f"{step.name}: exit code {code}, {seconds} s", flush=True)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """A backend on this computer, and its address."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        words = ["serve", "--port", str(port), "--until-stdin-closes"]
        messages = self.folder / "messages" / "serve.txt"
        with messages.open("wb") as file, self._started(self.program, *words, stdout=file, stderr=file) as process:
            until = time.monotonic() + LONGEST
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"The backend did not start; see {messages}.")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"

    @contextmanager
    def _started(self, program: str, *words: str, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
        """A Python program that ends when its standard input closes."""
        command = [sys.executable, "-c", program, *words]
        stdin = subprocess.PIPE
        with subprocess.Popen(command, cwd=self.folder, env=self.environment, stdin=stdin, **streams) as process:
            try:
                yield process
            finally:
                assert process.stdin is not None
                process.stdin.close()
                process.wait(LONGEST)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def record(folder: Path, checkout: Path) -> None:
    """Makes the inputs and runs every command."""
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; name a new folder.")
    began = time.monotonic()
    inputs = folder / "inputs"
    for place in (inputs, folder / "messages"):
        place.mkdir(parents=True)
    for make in (write_scans, write_cases, write_benchmark, write_training, write_sources):
        make(inputs)
    recording = Recording(folder.resolve(), checkout.resolve())
    chains: Queue[tuple[Step, ...]] = Queue()
    for chain in CHAINS:
        chains.put(chain)
    if find_spec("ray") is not None:
        chains.put((ON_RAY,))
    else:
        print(f"{ON_RAY.name} was left out: Ray is not installed.")
    with recording.serving() as server, ThreadPoolExecutor(AT_ONCE) as pool:
        for worker in [pool.submit(recording.run_chains, chains, server) for _ in range(AT_ONCE)]:
            worker.result()
    (folder / "outcomes.json").write_text(json.dumps(recording.outcomes, indent=1), encoding="utf-8")
    print(f"Recorded {len(recording.outcomes)} commands in {time.monotonic() - began:.0f} s: {folder}")


# -- comparison -------------------------------------------------------------------------------------------------------


def compare(before: Path, after: Path) -> list[tuple[str, str, str, str]]:
    """(command, file, part, what differs) of all that differs."""
    codes = [json.loads((folder / "outcomes.json").read_text("utf-8")) for folder in (before, after)]
    found = []
    for name in dict.fromkeys([*codes[0], *codes[1]]):
        code, other = (str(one[name]["code"]) if name in one else "not run" for one in codes)
        if code != other:
            found.append((name, "", "exit code", f"{code} before, {other} after"))
    files = [set(_files(folder)) for folder in (before, after)]
    for path in sorted(files[0] | files[1]):
        command, _, name = path.removeprefix("results/").partition("/")
        if path not in files[1] or path not in files[0]:
            found.append((command, name, "", "is missing after" if path in files[0] else "is new after"))
            continue
        one, other = _content(before / path), _content(after / path)
        for part in dict.fromkeys([*one, *other]):
            text = _difference(one.get(part), other.get(part))
            if text:
                found.append((command, name, part, text))
    return found


def _files(folder: Path) -> Iterator[str]:
    """What is compared of a record: inputs, so that it is known where they differ, and results."""
    for path in sorted((folder / "inputs").rglob("*")) + sorted((folder / "results").rglob("*")):
        name = path.name
        if name.endswith((*IMAGES, ".csv", ".json", ".jsonl", ".safetensors")) and not _is_untold(path):
            yield path.relative_to(folder).as_posix()
    for path in sorted(folder.glob("results/*/predictions")):
        yield path.relative_to(folder).as_posix()


def _is_untold(path: Path) -> bool:
    """Provenance, module names, and what is kept for a later run in a form of its own (its effect is compared)."""
    if path.name in ("model_index.json", "support.safetensors", "preprocessor_config.json"):
        return True
    if path.suffix == ".safetensors" and "pipeline" not in path.parts and "inputs" not in path.parts:
        return True  # a checkpoint
    return path.suffix == ".json" and b'"sdfsmis_version"' in path.read_bytes()


def _content(path: Path) -> dict[str, Any]:
    """What a file holds, by part: arrays, numbers and texts."""
    if path.is_dir():
        return _masks(path)
    if path.name.endswith(IMAGES):
        return _image(path)
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return dict(_flat([{key: value for key, value in row.items()} for row in csv.DictReader(file)]))
    if path.suffix == ".jsonl":
        return dict(_flat([json.loads(line) for line in path.read_text("utf-8").splitlines()]))
    if path.suffix == ".json":
        return dict(_flat(json.loads(path.read_text("utf-8"))))
    from safetensors.numpy import load_file

    return load_file(path)


def _masks(folder: Path) -> dict[str, Any]:
    """The masks of an evaluation, by what they hold: the files' names come from the weights' digest."""
    found: dict[str, int] = {}
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            mask = np.unpackbits(arrays["bits"], count=int(np.prod(arrays["shape"])))
        name = f"mask of {int(mask.sum())} voxels, {hashlib.sha256(mask.data).hexdigest()[:12]}"
        found[name] = found.get(name, 0) + 1
    return found


def _image(path: Path) -> dict[str, Any]:
    read = SimpleITK.ReadImage(str(path))
    found: dict[str, Any] = {"voxels": SimpleITK.GetArrayFromImage(read)}
    found |= {"spacing": read.GetSpacing(), "origin": read.GetOrigin(), "direction": read.GetDirection()}
    if path.name.endswith(".seg.nrrd"):
        keys = [key for key in read.GetMetaDataKeys() if re.fullmatch(r"Segment\d+_(Name|LabelValue|Layer)", key)]
        found |= {key: read.GetMetaData(key) for key in sorted(keys)}
    return found


def _flat(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of all that a JSON file or table tells, but for what is untold."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key not in UNTOLD and not key.startswith("_"):
                yield from _flat(value, f"{place}.{key}".lstrip("."))
    elif isinstance(content, list):
        yield f"{place} length".lstrip(), len(content)
        for number, value in enumerate(content):
            yield from _flat(value, f"{place}[{number}]")
    else:
        yield place, MODEL_DIGEST.sub("", content) if isinstance(content, str) else content


def _difference(one: Any, other: Any) -> str:
    """What differs, in a few words; "" where nothing does."""
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        same = type(one) is type(other) and (one == other or (one != one and other != other))
        return "" if same else f"{_short(one)} before, {_short(other)} after"
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{one.dtype} {one.shape} before, {other.dtype} {other.shape} after"
    differ = one != other
    if one.dtype.kind == "f":
        differ &= ~(np.isnan(one) & np.isnan(other))
    if not differ.any():
        return ""
    apart = np.abs(one[differ].astype(np.float64) - other[differ].astype(np.float64)).max()
    return f"{np.count_nonzero(differ)} of {one.size} values differ, by at most {apart:.3g}"


def _short(value: Any) -> str:
    return "absent" if value is None else f"{value!r:.60}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    recorder = actions.add_parser("record", help="run the commands of a checkout")
    recorder.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    recorder.add_argument("--checkout", type=Path, default=ROOT, metavar="DIR", help="default: this one")
    comparer = actions.add_parser("compare", help="exit code 1 and a table where two records differ")
    comparer.add_argument("before", type=Path)
    comparer.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.action == "record":
        record(options.output, options.checkout)
        return 0
    found = compare(options.before, options.after)
    rows = [("command", "file", "part", "difference"), *found]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows if found else ():
        print("  ".join([*(text.ljust(width) for text, width in zip(row[:3], widths, strict=True)), row[3]]))
    print(f"{len(found)} differences" if found else "Nothing differs.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
