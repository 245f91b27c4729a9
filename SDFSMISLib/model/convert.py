"""Pipeline folders from other weights: from Stable Diffusion 1.5 with DINOv2, or a training by the official code."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from transformers import Dinov2Model
from transformers.utils import cached_file

from SDFSMISLib.errors import InputError
from SDFSMISLib.model.loading import (
    HUB_ID,
    hub_folder,
    load_component,
    not_on_the_hub,
    quiet,
    read_json,
    refuse_pickles,
    weight_files,
)
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.translator import VisualToTextualTranslator, resized_position_table
from SDFSMISLib.model.unet import SupportQueryUNet

__all__ = ["convert_official", "convert_stable_diffusion", "image_encoder_for", "processor_settings"]

BICUBIC = 3  # PIL's number for it
FOREIGN_ENTRIES = {"_name_or_path", "in_channels_ref"}
# Features of other U-Nets that the support-query U-Net cannot use, with the value that means their absence.
ABSENT_FEATURES = {
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "encoder_hid_dim_type": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
}


def convert_stable_diffusion(
    stable_diffusion: str | Path,
    dinov2: str | Path,
    output: Path,
    *,
    resolution: int = 256,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Path:
    """A pipeline that is ready to be trained: its input convolutions are adapted, its translator is new.

    Args:
        stable_diffusion: a Stable Diffusion 1.5 folder with ``unet`` and ``vae`` as diffusers saves them, or a hub id.
        dinov2: a DINOv2 folder as transformers saves it, or a hub id. Its ``preprocessor_config.json`` says how images
            are prepared; without one DINOv2's usual values are taken.
        output: the folder to make; it appears whole or not at all.
        resolution: side of the square slices that the pipeline will work at, pixels.
        seed: of the translator's first weights.
        dtype: of the stored weights, float32 or float16.
        overwrite: whether an SDFSMIS pipeline that ``output`` already holds is replaced.

    Returns:
        ``output``.

    Raises:
        InputError: sources that are missing, pickled, truncated or of another kind; an output that exists or cannot be
            written.
    """
    with _new_folder(Path(output), overwrite) as folder:
        source = _source_folder(
            stable_diffusion, "a Stable Diffusion folder with unet and vae", _stable_diffusion_on_hub
        )
        encoder_source = _source_folder(dinov2, "a DINOv2 folder", _dinov2_on_hub)
        vae = load_component(AutoencoderKL, source / "vae")
        unet = load_component(UNet2DConditionModel, source / "unet")
        _check_plain(unet, source / "unet")
        adapted = SupportQueryUNet.from_stable_diffusion(unet)
        settings = processor_settings(encoder_source)
        encoder = image_encoder_for(encoder_source, settings["crop"])
        width = encoder.config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            translator = VisualToTextualTranslator(width, adapted.config.cross_attention_dim, 2 * width, **settings)
        _save(folder, vae, adapted, encoder, translator, resolution, official_details=False, dtype=dtype)
    return Path(output)


def convert_official(
    folder: Path,
    output: Path,
    *,
    stable_diffusion: str | Path | None = None,
    dinov2: str | Path | None = None,
    resolution: int = 256,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Path:
    """A pipeline from a folder that the official code trained, giving the same masks.

    Args:
        folder: what its training wrote: the finished pipeline (``unet``, ``image_projector``, ``image_encoder``,
            ``processor``, ``vae``), or one of its ``checkpoint-N`` folders, which hold the first two only; the other
            three are then looked for in the folder around it. A training folder without a finished pipeline means its
            last checkpoint.
        output: the folder to make; it appears whole or not at all.
        stable_diffusion: where the autoencoder is, if not in ``folder``: a Stable Diffusion folder or hub id. The
            official training leaves the autoencoder as it was.
        dinov2: where the image encoder is, if not in ``folder``: a DINOv2 folder or hub id.
        resolution: side of the square slices that it was trained at, pixels.
        dtype, overwrite: see `convert_stable_diffusion`.

    Returns:
        ``output``.

    Raises:
        InputError: see `convert_stable_diffusion`.
    """
    with _new_folder(Path(output), overwrite) as made:
        trained = _source_folder(folder, "a folder that the official code trained")
        trained = trained if (trained / "unet").is_dir() else _last_checkpoint(trained)
        around = [trained, trained.parent] if trained.name.startswith("checkpoint-") else [trained]
        unet = _official_unet(_part(around[:1], ["unet"], "U-Net"))
        projector = load_component(
            VisualToTextualTranslator,
            _part(around[:1], ["image_projector", "projector", "mapper"], "projector"),
            stored_as=("FeatureToConditioningMLP", "VisualToTextualTranslator"),
        )
        if stable_diffusion is not None:
            source = _source_folder(stable_diffusion, "a Stable Diffusion folder with vae", _stable_diffusion_on_hub)
            vae = load_component(AutoencoderKL, source / "vae")
        else:
            vae = load_component(AutoencoderKL, _part(around, ["vae"], "autoencoder", "Stable Diffusion"))
        if dinov2 is not None:
            encoder_source = _source_folder(dinov2, "a DINOv2 folder", _dinov2_on_hub)
        else:
            encoder_source = _part(around, ["image_encoder", "dinov2"], "image encoder", "DINOv2")
        processors = [
            path for place in around for name in ("processor", "image_processor") if (path := place / name).is_dir()
        ]
        processor = processors[0] if processors else encoder_source
        settings = processor_settings(processor)
        encoder = image_encoder_for(encoder_source, settings["crop"])
        sizes = {
            name: projector.config[name] for name in ("input_dim", "output_dim", "hidden_dim", "num_hidden_layers")
        }
        translator = VisualToTextualTranslator(**sizes, **settings)
        translator.load_state_dict(projector.state_dict())
        _save(made, vae, unet, encoder, translator, resolution, official_details=True, dtype=dtype)
    return Path(output)


def processor_settings(folder: Path) -> dict[str, Any]:
    """The translator's preprocessing settings, from ``preprocessor_config.json`` in `folder`; by default DINOv2's.

    Raises:
        InputError: if it asks for anything but a bicubic resize of the shortest edge, a square centre crop and
            normalisation.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {"resize_edge": 256, "crop": 224}
    config = read_json(path)
    size, crop = config.get("size", {}), config.get("crop_size", {})
    edge = size if isinstance(size, int) else size.get("shortest_edge")
    height, width = (crop, crop) if isinstance(crop, int) else (crop.get("height"), crop.get("width"))
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    usual = all(config.get(step, True) for step in steps) and config.get("resample", BICUBIC) == BICUBIC
    if not usual or not isinstance(edge, int) or not isinstance(height, int) or height != width or height > edge:
        raise InputError(
            f"{path} is not supported; expected are a bicubic resize of the shortest edge (size.shortest_edge), a "
            "square centre crop no larger (crop_size), and normalisation, as DINOv2 has them."
        )
    settings: dict[str, Any] = {"resize_edge": edge, "crop": height}
    for name in ("image_mean", "image_std"):
        if name in config:
            settings[name] = tuple(float(x) for x in config[name])
    return settings


def image_encoder_for(folder: Path, crop: int) -> Dinov2Model:
    """DINOv2 with its position table resized for images of `crop` x `crop` pixels.

    Raises:
        InputError: see `SDFSMISLib.model.loading.load_component`.
    """
    model = load_component(Dinov2Model, folder)
    patch = model.config.patch_size
    grid = crop // patch
    state = model.state_dict()
    table = state["embeddings.position_embeddings"]
    if table.shape[1] == 1 + grid * grid:
        return model
    config = model.config.to_dict() | {"image_size": grid * patch}
    resized = Dinov2Model(type(model.config).from_dict(config)).eval()
    resized.load_state_dict(state | {"embeddings.position_embeddings": resized_position_table(table, grid)})
    return resized


def _official_unet(folder: Path) -> SupportQueryUNet:
    """The official U-Net in our class; only its class name and one entry of its configuration differ."""
    shapes = {}
    for file in weight_files(SupportQueryUNet, folder):
        with safe_open(file, "pt") as tensors:
            found = {"conv_in.weight", "conv_in_ref.weight"}.intersection(tensors.keys())
            shapes.update({name: tensors.get_slice(name).get_shape() for name in found})
    if len(shapes) < 2:
        raise InputError(
            f"The U-Net in {folder} has no second input convolution (conv_in_ref), so the official code did not train "
            "it; convert it as Stable Diffusion instead."
        )
    if shapes["conv_in.weight"] != shapes["conv_in_ref.weight"]:
        raise InputError(
            f"The two input convolutions in {folder} have the shapes {shapes['conv_in.weight']} and "
            f"{shapes['conv_in_ref.weight']}; SD-FSMIS has two of one shape."
        )
    loaded = load_component(
        SupportQueryUNet,
        folder,
        stored_as=("MyUNet2DConditionModel", "UNet2DConditionModel", "SupportQueryUNet"),
        in_channels=shapes["conv_in.weight"][1],
    )
    _check_plain(loaded, folder)
    return loaded


def _check_plain(unet: Any, folder: Path) -> None:
    for name, absent in ABSENT_FEATURES.items():
        if (value := unet.config.get(name, absent)) != absent:
            raise InputError(
                f"The U-Net in {folder} has {name} = {value!r}, which SD-FSMIS cannot use; Stable Diffusion 1.5 and "
                "2.x are supported."
            )


def _save(
    folder: Path,
    vae: Any,
    unet: SupportQueryUNet,
    encoder: Dinov2Model,
    translator: VisualToTextualTranslator,
    resolution: int,
    *,
    official_details: bool,
    dtype: torch.dtype,
) -> None:
    latents, inputs, outputs = vae.config.latent_channels, unet.config.in_channels, unet.config.out_channels
    if (inputs, outputs) != (2 * latents, latents):
        raise InputError(
            f"The U-Net takes {inputs // 2} and gives {outputs} latent channels, but the autoencoder has {latents}; "
            "take both from one model."
        )
    fits = {
        "image encoder": (translator.config.input_dim, encoder.config.hidden_size),
        "U-Net's cross-attention": (translator.config.output_dim, unet.config.cross_attention_dim),
    }
    for name, (ours, theirs) in fits.items():
        if ours != theirs:
            raise InputError(f"The projector is made for a width of {ours}, but the {name} has {theirs}.")
    pipeline = SDFSMISPipeline(vae, unet, encoder, translator, resolution, official_details)
    if resolution <= 0 or resolution % pipeline.latent_factor:
        raise InputError(
            f"The resolution {resolution} is no multiple of the autoencoder's factor, {pipeline.latent_factor}."
        )
    with quiet():
        pipeline.to(dtype=dtype).save_pretrained(folder)
    for path in folder.glob("*/config.json"):  # what the sources' own entries say of another class or machine
        config = {name: value for name, value in read_json(path).items() if name not in FOREIGN_ENTRIES}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def _new_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `output`: it replaces `output` when the block ends, or is removed if that raises."""
    _check_free(output, overwrite)
    mark = uuid.uuid4().hex[:8]
    temporary, old = (output.with_name(f".{output.name}.{mark}.{kind}") for kind in ("new", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if output.exists():
            os.replace(output, old)
        os.replace(temporary, output)
    except (OSError, SafetensorError) as error:
        if old.exists() and not output.exists():
            os.replace(old, output)
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"Cannot write {output}: {reason}; name a folder that can be written to.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _check_free(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    index = output / "model_index.json"
    ours = index.is_file() and read_json(index).get("_class_name") == SDFSMISPipeline.__name__
    if not ours:
        raise InputError(
            f"{output} exists already and is no SDFSMIS pipeline, so it is not replaced; name another folder."
        )
    if not overwrite:
        raise InputError(f"{output} exists already; name another folder, or ask for it to be overwritten.")


def _source_folder(source: str | Path, what: str, on_hub: Any = None) -> Path:
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        refuse_pickles(path)
        raise InputError(
            f"{path} is a single file, and {what} is needed; diffusers makes one from a single file by "
            "StableDiffusionPipeline.from_single_file(file).save_pretrained(folder)."
        )
    if on_hub is not None and HUB_ID.fullmatch(str(source)):
        return on_hub(str(source))
    raise InputError(f"{source} does not exist; {what} is needed.")


def _stable_diffusion_on_hub(name: str) -> Path:
    unused = ("feature_extractor", "image_encoder", "safety_checker", "scheduler", "text_encoder", "tokenizer")
    return hub_folder(DiffusionPipeline, name, **dict.fromkeys(unused))


def _dinov2_on_hub(name: str) -> Path:
    try:
        cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        cached_file(name, "model.safetensors")
        return Path(str(cached_file(name, "config.json"))).parent
    except Exception as error:  # the hub client's own classes differ from version to version
        raise not_on_the_hub(name, error) from error


def _last_checkpoint(folder: Path) -> Path:
    steps = {
        int(found[1]): path
        for path in folder.glob("checkpoint-*")
        if (found := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    if not steps:
        raise InputError(
            f"{folder} has neither a unet folder nor checkpoint-N folders; the official code's training makes them."
        )
    return steps[max(steps)]


def _part(folders: list[Path], names: list[str], what: str, model: str | None = None) -> Path:
    """The first of the sub-folders `names` that exists.

    Args:
        model: name of the model whose folder the caller can give instead, for the error message.
    """
    for path in (folder / name for folder in folders for name in names):
        if path.is_dir():
            return path
    places = " or ".join(str(folder) for folder in folders)
    way_out = f"; give the folder or hub id of {model}, which has one" if model else ""
    raise InputError(f"{places} has no {what} ({' or '.join(names)}){way_out}.")
