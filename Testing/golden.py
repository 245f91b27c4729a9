"""The golden tensors of a parity folder, the networks that made them, and how close is close enough."""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from SDFSMISLib.model import SDFSMISPipeline, SupportQueryUNet, VisualToTextualTranslator
from SDFSMISLib.model.convert import image_encoder_for, processor_settings

FOLDER = Path(os.environ.get("SDFSMIS_PARITY_DIR") or Path(__file__).parent / "parity")
RELATIVE = 1e-5  # ||ours - golden|| / ||golden||
ELEMENT = 5e-5  # of values of order 1
GRADIENT = 1e-4  # as RELATIVE: rounding adds up on the way back through two passes
NO_CASE = "(none)"

largest_errors: dict[str, tuple[float, float]] = {}  # by stage: relative, element


@cache
def meta() -> dict[str, Any]:
    path = FOLDER / "meta.json"
    if not path.is_file():
        pytest.fail(f"{FOLDER} is no parity folder: it has no meta.json")
    return json.loads(path.read_text(encoding="utf-8"))


def config(name: str) -> dict[str, Any]:
    return dict(meta()["configs"][name])


def inference_cases() -> list[str]:
    """Names of the cases that meta.json lists, for parametrize; never empty, so that an empty folder fails."""
    path = FOLDER / "meta.json"
    listed = json.loads(path.read_text(encoding="utf-8")).get("cases", {}) if path.is_file() else {}
    return sorted(listed) or [NO_CASE]


def sub_cases(name: str) -> list[str]:
    """Names of the parts of one file (`<part>.<tensor>`), for parametrize; never empty."""
    path = FOLDER / f"case_{name}.safetensors"
    return sorted({key.partition(".")[0] for key in load_file(path)} if path.is_file() else ()) or [NO_CASE]


@cache
def case(name: str) -> dict[str, torch.Tensor]:
    path = FOLDER / f"case_{name}.safetensors"
    if not path.is_file():
        pytest.fail(f"the parity folder {FOLDER} has no {path.name}")
    return load_file(path)


def part(name: str, sub_case: str) -> dict[str, torch.Tensor]:
    """The tensors of one part of a file, without its prefix."""
    found = {key.partition(".")[2]: x for key, x in case(name).items() if key.startswith(f"{sub_case}.")}
    assert found, f"case {name} of {FOLDER} has no part {sub_case}"
    return found


@cache
def _all_weights() -> dict[str, torch.Tensor]:
    paths = sorted(FOLDER.glob("weights*.safetensors"))  # one file, or several for a bound on their size
    if not paths:
        pytest.fail(f"the parity folder {FOLDER} has no weights.safetensors")
    return {key: x for path in paths for key, x in load_file(path).items()}


def weights(prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of one network, under their own names."""
    return {key.removeprefix(f"{prefix}."): x for key, x in _all_weights().items() if key.startswith(f"{prefix}.")}


# -- networks ---------------------------------------------------------------------------------------------------------


def stable_diffusion_unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(**config("unet")).eval()
    unet.load_state_dict(weights("unet_sd"))
    return unet


def trained_unet() -> SupportQueryUNet:
    unet = SupportQueryUNet.from_stable_diffusion(stable_diffusion_unet()).eval()
    unet.load_state_dict(unet.state_dict() | weights("unet"))
    return unet


def autoencoder() -> AutoencoderKL:
    vae = AutoencoderKL(**config("vae")).eval()
    vae.load_state_dict(weights("vae"))
    return vae


def write_dinov2(folder: Path, name: str = "dinov2") -> Path:
    """A DINOv2 folder as transformers 4 saved it, with its processor; ``name`` is `dinov2` or `dinov2_518`."""
    folder.mkdir(parents=True, exist_ok=True)
    described = config(name) | {"model_type": "dinov2", "architectures": ["Dinov2Model"]}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    processor = config("image_processor") | {"image_processor_type": "BitImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    save_file(weights("dinov2") | weights(name), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_stable_diffusion(folder: Path) -> Path:
    """A Stable Diffusion folder, of what the method needs of it."""
    stable_diffusion_unet().save_pretrained(folder / "unet")
    autoencoder().save_pretrained(folder / "vae")
    return folder


def write_official(folder: Path) -> Path:
    """A finished pipeline as the official training leaves it."""
    adapted = {k: x for k, x in weights("unet_sd").items() if not k.startswith("conv_in.")} | weights("unet")
    unet = config("unet") | config("adapted_unet") | {"_class_name": "MyUNet2DConditionModel"}
    projector = config("mapper") | {"_class_name": "FeatureToConditioningMLP"}
    parts = {"unet": (unet, adapted), "image_projector": (projector, weights("mapper"))}
    for name, (described, state) in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(described), encoding="utf-8")
        save_file(state, folder / name / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    autoencoder().save_pretrained(folder / "vae")
    write_dinov2(folder / "image_encoder")
    (folder / "processor").mkdir()
    (folder / "image_encoder" / "preprocessor_config.json").rename(folder / "processor" / "preprocessor_config.json")
    return folder


@cache
def pipeline() -> SDFSMISPipeline:
    """The networks that every case was recorded with."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_dinov2(Path(temporary))
        settings = processor_settings(folder)
        encoder = image_encoder_for(folder, settings["crop"])
    sizes = config("mapper")
    assert sizes.pop("use_layernorm", True)
    translator = VisualToTextualTranslator(**sizes, **settings).eval()
    translator.load_state_dict(weights("mapper"))
    return SDFSMISPipeline(autoencoder(), trained_unet(), encoder, translator, official_details=True)


# -- comparison -------------------------------------------------------------------------------------------------------


def check(stage: str, ours: torch.Tensor, golden: torch.Tensor, most: float = RELATIVE) -> None:
    """Fail unless ``ours`` is within the tolerances, ``most`` for the relative error; the largest error of each stage
    is kept for the report."""
    assert ours.shape == golden.shape, f"{stage}: {tuple(ours.shape)} instead of {tuple(golden.shape)}"
    golden = golden.double()
    difference = ours.detach().double() - golden
    norm = float(golden.norm())
    relative = float(difference.norm()) / norm if norm else 0.0
    order = max(1.0, float(golden.square().mean().sqrt()))
    element = float(difference.abs().max()) / order
    note(stage, relative, element)
    assert relative <= most and element <= ELEMENT, f"{stage}: relative {relative:.2e}, element {element:.2e}"


def note(stage: str, relative: float, element: float) -> None:
    before = largest_errors.get(stage, (0.0, 0.0))
    largest_errors[stage] = (max(before[0], relative), max(before[1], element))


def check_exact(stage: str, ours: torch.Tensor, golden: torch.Tensor) -> None:
    assert ours.shape == golden.shape, f"{stage}: {tuple(ours.shape)} instead of {tuple(golden.shape)}"
    differ = int((ours.to(golden.dtype) != golden).sum())
    note(stage, 0.0, 0.0)
    assert differ == 0, f"{stage}: {differ} of {golden.numel()} elements differ"
