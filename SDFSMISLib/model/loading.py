"""Pipelines and their components from a folder or a model hub, and the digest of their weights.

Only safetensors weights are read: opening a pickled file can run code. Loading is strict: diffusers and transformers
fill a missing weight with random numbers and warn; here that is an `InputError`, like every other fault of a folder.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import diffusers.utils.logging as diffusers_logging
import torch
import transformers.utils.logging as transformers_logging
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors import SafetensorError, safe_open
from transformers import Dinov2Model, PreTrainedModel

from SDFSMISLib.errors import InputError
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.translator import VisualToTextualTranslator
from SDFSMISLib.model.unet import SupportQueryUNet
from SDFSMISLib.options import BUILT_IN


def weights_digest(pipeline: DiffusionPipeline) -> str:
    """sha256 (hex) over every weight of every network: its name, dtype, shape and bytes as loaded."""
    digest = hashlib.sha256()
    networks = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    for name, network in sorted(networks.items()):
        for key, tensor in sorted(network.state_dict().items()):
            digest.update(f"{name}.{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


PACKAGE_WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
COMPONENTS: dict[str, type[Any]] = {
    "vae": AutoencoderKL,
    "unet": SupportQueryUNet,
    "image_encoder": Dinov2Model,
    "translator": VisualToTextualTranslator,
}
PICKLED = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}
Network = TypeVar("Network", bound=torch.nn.Module)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_pipeline(
    name_or_dir: str | Path = BUILT_IN, device: str | torch.device = "auto", dtype: torch.dtype = torch.float32
) -> SDFSMISPipeline:
    """A pipeline that is ready to run.

    Args:
        name_or_dir: ``built-in`` (the weights of this package), a pipeline folder, or an id on a model hub.
        device: ``auto`` (the GPU if there is one, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: of weights and computation.

    Raises:
        InputError: for an unknown model; a missing component; weights that are pickled, truncated, or of another class
            or size; a device that does not exist or has too little memory.
    """
    target = resolve_device(device)
    folder = _pipeline_folder(name_or_dir)
    index = _pipeline_index(folder)
    parts = {name: load_component(cls, folder / name) for name, cls in COMPONENTS.items()}
    known = inspect.signature(SDFSMISPipeline.__init__).parameters.keys() - COMPONENTS.keys()
    try:
        pipeline = SDFSMISPipeline(**parts, **{name: value for name, value in index.items() if name in known})
    except ValueError as error:
        raise InputError(f"The settings of {folder} do not fit its networks: {error}") from error
    try:
        with quiet():
            return pipeline.to(target, dtype)
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(
            f"{name_or_dir} does not fit into the free memory of {target}; free some, or use the device cpu."
        ) from error


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device that a device name means on this computer; see `load_pipeline`.

    Raises:
        InputError: if it is unknown or does not exist.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    accepted = "auto, cpu, cuda, cuda:N or mps"
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        requested = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"The device {device!r} is unknown; accepted are {accepted}.") from error
    if requested.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(f"The device {device} was asked for, but torch finds no CUDA GPU; use auto or cpu.")
        if (requested.index or 0) >= count:
            available = "cuda:0 only" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise InputError(f"The device {device} was asked for, but torch finds {available}.")
    elif requested.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("The device mps was asked for, but torch finds no Apple GPU; use auto or cpu.")
    elif requested.type != "cpu":
        raise InputError(f"The device {device} is not supported; accepted are {accepted}.")
    return requested


def load_component(
    cls: type[Network], folder: Path, stored_as: tuple[str, ...] | None = None, **overrides: Any
) -> Network:
    """One network of a pipeline, with all of its weights.

    Args:
        cls: a diffusers or transformers model class.
        folder: with ``config.json`` and safetensors weights (one file, shards, or the ``fp16`` variant).
        stored_as: class names that the configuration may name; by default that of `cls`.
        overrides: of configuration values.

    Raises:
        InputError: see `load_pipeline`.
    """
    files = weight_files(cls, folder)
    config = read_json(folder / "config.json")
    _check_class(cls, folder, config, stored_as or (cls.__name__,))
    variant = {"variant": "fp16"} if files[0].name.endswith(".fp16.safetensors") else {}
    try:
        with quiet():
            loader: Any = cls
            model, report = loader.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **variant, **overrides
            )
    # Whatever the libraries raise for a configuration of the wrong shape or kind.
    except (AttributeError, KeyError, OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"The weights in {folder} do not fit {cls.__name__} with its config.json: {reason}") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"The weights in {folder} lack {len(missing)} of the tensors of {cls.__name__}, {missing[0]} for one; get "
            "the folder again."
        )
    return model


def weight_files(cls: type[Any], folder: Path) -> list[Path]:
    """The safetensors files of a component, each checked to be complete.

    Raises:
        InputError: if there is none, only a pickled one, or one that is truncated or corrupt.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is missing; {cls.__name__} with config.json and safetensors weights belongs there.")
    stem = "model" if issubclass(cls, PreTrainedModel) else "diffusion_pytorch_model"
    shards = folder / f"{stem}.safetensors.index.json"
    single = [folder / f"{stem}.safetensors", folder / f"{stem}.fp16.safetensors"]
    if shards.is_file() and not single[0].is_file():
        files = [folder / name for name in sorted(set(read_json(shards).get("weight_map", {}).values()))]
    else:
        files = [file for file in single if file.is_file()][:1]
    if not files:
        refuse_pickles(folder)
        raise InputError(f"{folder} has no {stem}.safetensors; the weights of {cls.__name__} belong there.")
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{file} is missing, truncated or not a safetensors file ({error}); get it again."
            ) from error
    return files


def refuse_pickles(path: Path) -> None:
    """Raise `InputError` if `path` is a pickled checkpoint, or a folder with one."""
    found = sorted(file for file in ([path] if path.is_file() else path.glob("*")) if file.suffix in PICKLED)
    if found:
        raise InputError(
            f"{found[0]} is a pickled checkpoint, which can run code when it is opened, and is not read; take the "
            "safetensors version of the model, or load this one where you trust it and save it with "
            "save_pretrained(folder, safe_serialization=True)."
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: if the file is missing or holds no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or no JSON file ({error}); get the folder again.") from error
    if not isinstance(found, dict):
        raise InputError(
            f"{path} holds a {type(found).__name__} where a JSON object is expected; get the folder again."
        )
    return found


def hub_folder(pipeline: type[DiffusionPipeline], name: str, **skipped: None) -> Path:
    """The local copy of a pipeline on a model hub, downloaded if needed, without `skipped` components.

    Raises:
        InputError: if the hub has no such pipeline with safetensors weights, or there is no connection and no copy.
    """
    try:
        return Path(pipeline.download(name, use_safetensors=True, **skipped))
    except Exception as error:  # the hub client's own classes differ from version to version
        raise not_on_the_hub(name, error) from error


def not_on_the_hub(name: str, error: Exception) -> InputError:
    """The error for a `name` that is neither a folder nor found on a hub."""
    reason = str(error).strip().partition("\n")[0]
    return InputError(f"{name} is no folder here, and was not found on a model hub either ({reason}).")


@contextmanager
def quiet() -> Iterator[None]:
    """Context in which diffusers and transformers show no progress bars and log errors only."""
    libraries = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def _pipeline_folder(name_or_dir: str | Path) -> Path:
    name = str(name_or_dir)
    if name == BUILT_IN:
        if not (folder := PACKAGE_WEIGHTS / BUILT_IN).is_dir():
            raise InputError(
                f"This installation lacks the built-in weights ({folder}); install it again, or name a model."
            )
        return folder
    path = Path(name_or_dir).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        refuse_pickles(path)
        raise InputError(f"{path} is a file; name the pipeline folder that holds model_index.json.")
    if HUB_ID.fullmatch(name):
        return hub_folder(SDFSMISPipeline, name)
    raise InputError(
        f"The model {name!r} is unknown; accepted are {BUILT_IN}, a pipeline folder (sdfsmis convert makes one) or an "
        "id on a model hub (owner/name)."
    )


def _pipeline_index(folder: Path) -> dict[str, Any]:
    if not (folder / "model_index.json").is_file():
        refuse_pickles(folder)
        raise InputError(f"{folder} has no model_index.json and so is no pipeline folder; sdfsmis convert makes one.")
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != SDFSMISPipeline.__name__:
        raise InputError(
            f"{folder} holds {index.get('_class_name')}, not {SDFSMISPipeline.__name__}; sdfsmis convert makes one "
            "from Stable Diffusion and DINOv2."
        )
    for name, cls in COMPONENTS.items():
        if (listed := index.get(name)) is not None and listed[-1] != cls.__name__:
            raise InputError(f"{folder} lists {listed[-1]} as {name}; expected is {cls.__name__}.")
    return index


def _check_class(cls: type[Any], folder: Path, config: dict[str, Any], stored_as: tuple[str, ...]) -> None:
    found, expected = config.get("_class_name"), stored_as
    if issubclass(cls, PreTrainedModel):
        found, expected = config.get("model_type"), (cls.config_class.model_type,)
    if found is not None and found not in expected:
        raise InputError(f"{folder} holds {found}; expected is {expected[0]}.")
