"""Loading a pipeline: what works, and the one sentence for everything that does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers.utils.logging as diffusers_logging
import pytest
import torch
import transformers.utils.logging as transformers_logging
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import golden
from SDFSMISLib.errors import InputError
from SDFSMISLib.model import SDFSMISPipeline, loading
from SDFSMISLib.model.loading import load_pipeline, resolve_device

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    golden.pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "pipeline"))


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    c = golden.case(golden.inference_cases()[0])
    return c["support_images"], c["support_masks"], c["query_images"]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def refusal(*args: Any, **kwargs: Any) -> str:
    """The text of the InputError: one sentence, one line."""
    with pytest.raises(InputError) as caught:
        load_pipeline(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text and text[0] != " "
    return text


def test_a_saved_pipeline_gives_the_same_output(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By our loader and by diffusers' own; ours says nothing on the way."""
    expected = golden.pipeline()(*inputs()).maps
    loaded = load_pipeline(saved, "cpu")
    assert capfd.readouterr() == ("", "")
    assert not any(part.training for part in (loaded.vae, loaded.unet, loaded.image_encoder, loaded.translator))
    for pipe in (loaded, SDFSMISPipeline.from_pretrained(saved)):
        assert pipe.config.official_details and pipe.config.resolution == golden.pipeline().config.resolution
        assert torch.equal(pipe(*inputs()).maps, expected)


def test_weights_begin_where_torchs_own_memory_does_however_they_were_read(saved: Path) -> None:
    """Some processors round otherwise where they do not."""
    for pipe in (load_pipeline(saved, "cpu"), SDFSMISPipeline.from_pretrained(saved)):
        for part in (pipe.vae, pipe.unet, pipe.image_encoder, pipe.translator):
            assert all(tensor.data_ptr() % 64 == 0 for tensor in (*part.parameters(), *part.buffers()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(saved: Path, dtype: torch.dtype) -> None:
    expected = golden.pipeline()(*inputs()).maps
    for pipe in (load_pipeline(saved, "cpu", dtype), SDFSMISPipeline.from_pretrained(saved).to(dtype=dtype)):
        assert {part.dtype for part in (pipe.vae, pipe.unet, pipe.image_encoder, pipe.translator)} == {dtype}
        maps = pipe(*inputs()).maps
        assert maps.dtype == torch.float32
        assert float((maps - expected).abs().mean()) < 0.03


def test_a_folder_of_half_precision_weights_loads_either_way(saved: Path, tmp_path: Path) -> None:
    """transformers keeps the stored type and diffusers does not, so the parts may differ; the run must not mind."""
    load_pipeline(saved, "cpu", torch.float16).save_pretrained(tmp_path / "half")
    expected = golden.pipeline()(*inputs()).maps
    assert load_pipeline(tmp_path / "half", "cpu").image_encoder.dtype == torch.float32
    for pipe in (load_pipeline(tmp_path / "half", "cpu"), SDFSMISPipeline.from_pretrained(tmp_path / "half")):
        assert float((pipe(*inputs()).maps - expected).abs().mean()) < 0.03


def test_shards_and_the_fp16_variant_load(saved: Path, tmp_path: Path) -> None:
    pipe = golden.pipeline()
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert (tmp_path / "shards/unet/diffusion_pytorch_model.safetensors.index.json").is_file()
    pipe.save_pretrained(tmp_path / "variant", variant="fp16")
    assert (tmp_path / "variant/unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    for name in ("shards", "variant"):
        assert torch.equal(load_pipeline(tmp_path / name, "cpu")(*inputs()).maps, pipe(*inputs()).maps)
    next((tmp_path / "shards/unet").glob("*-00002-of-*")).unlink()
    assert "00002-of" in refusal(tmp_path / "shards")


def test_built_in_is_the_folder_in_the_package(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PACKAGE_WEIGHTS", tmp_path)
    assert "lacks the built-in weights" in refusal()
    shutil.copytree(saved, tmp_path / "built-in")
    assert isinstance(load_pipeline(device="cpu"), SDFSMISPipeline)


def test_an_unknown_model_is_told_what_is_accepted(tmp_path: Path) -> None:
    text = refusal("no-such-model")
    assert "'no-such-model'" in text and "built-in" in text and "folder" in text and "hub" in text
    assert "unknown" in refusal(tmp_path / "nothing-here")


def test_a_hub_id_without_a_connection() -> None:
    assert "owner/name is no folder here" in refusal("owner/name")


def test_a_hub_id_is_downloaded(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(saved)

    monkeypatch.setattr(SDFSMISPipeline, "download", download)
    assert isinstance(load_pipeline("owner/name", "cpu"), SDFSMISPipeline)
    assert asked == [("owner/name", {"use_safetensors": True})]


@pytest.mark.parametrize("name", ["vae", "unet", "image_encoder", "translator"])
def test_a_missing_component_is_named(folder: Path, name: str) -> None:
    shutil.rmtree(folder / name)
    assert str(folder / name) in refusal(folder) and "missing" in refusal(folder)


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def foreign_index(folder: Path) -> None:
    edit_json(folder / "model_index.json", _class_name=StableDiffusionPipeline.__name__)


def broken_index(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": ', encoding="utf-8")


def list_as_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("[]", encoding="utf-8")


def foreign_component(folder: Path) -> None:
    edit_json(folder / "model_index.json", unet=["diffusers", "UNet2DConditionModel"])


def foreign_unet(folder: Path) -> None:
    edit_json(folder / "unet" / "config.json", _class_name="UNet2DConditionModel")


def foreign_encoder(folder: Path) -> None:
    edit_json(folder / "image_encoder" / "config.json", model_type="vit")


def no_configuration(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()


def other_sizes(folder: Path) -> None:
    edit_json(folder / "translator" / "config.json", hidden_dim=7)


def other_sizes_of_the_encoder(folder: Path) -> None:
    edit_json(folder / "image_encoder" / "config.json", mlp_ratio=3)


def truncated(folder: Path) -> None:
    path = folder / UNET_WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def empty(folder: Path) -> None:
    (folder / "image_encoder" / "model.safetensors").write_bytes(b"")


def corrupt(folder: Path) -> None:
    (folder / UNET_WEIGHTS).write_bytes(b"no tensors in here" * 100)


def lacking(folder: Path) -> None:
    state = load_file(folder / UNET_WEIGHTS)
    state.pop("conv_in_ref.weight")
    save_file(state, folder / UNET_WEIGHTS, metadata={"format": "pt"})


def lacking_in_the_encoder(folder: Path) -> None:
    state = load_file(folder / "image_encoder" / "model.safetensors")
    state.pop("layernorm.weight")
    save_file(state, folder / "image_encoder" / "model.safetensors", metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / UNET_WEIGHTS), folder / "unet" / "diffusion_pytorch_model.bin")
    (folder / UNET_WEIGHTS).unlink()


@pytest.mark.parametrize(
    "damage, said",
    [
        (no_index, "no model_index.json"),
        (foreign_index, "holds StableDiffusionPipeline, not SDFSMISPipeline; sdfsmis convert"),
        (broken_index, "no JSON file"),
        (list_as_index, "holds a list"),
        (foreign_component, "lists UNet2DConditionModel as unet"),
        (foreign_unet, "unet holds UNet2DConditionModel; expected is SupportQueryUNet"),
        (foreign_encoder, "image_encoder holds vit; expected is dinov2"),
        (no_configuration, "config.json is missing"),
        (other_sizes, "do not fit VisualToTextualTranslator with its config.json"),
        (other_sizes_of_the_encoder, "do not fit Dinov2Model with its config.json"),
        (truncated, "truncated"),
        (empty, "model.safetensors is missing, truncated"),
        (corrupt, "truncated or not a safetensors file"),
        (lacking, "lack 1 of the tensors of SupportQueryUNet, conv_in_ref.weight for one"),
        (lacking_in_the_encoder, "lack 1 of the tensors of Dinov2Model, layernorm.weight for one"),
        (pickled, "diffusion_pytorch_model.bin is a pickled checkpoint"),
    ],
)
def test_a_damaged_folder_is_refused(folder: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(folder)
    assert said in refusal(folder)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    for name, said in (("model.ckpt", "pickled"), ("model.safetensors", "name the pipeline folder")):
        (tmp_path / name).write_bytes(b"x")
        assert said in refusal(tmp_path / name)


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="cuda:2 was asked for, but torch finds cuda:0 to cuda:1"):
        resolve_device("cuda:2")


def test_mps_only_where_asked_for_and_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    assert resolve_device("mps") == torch.device("mps")


@pytest.mark.parametrize(
    "device, said",
    [
        ("cuda", "torch finds no CUDA GPU; use auto or cpu"),
        ("cuda:3", "torch finds no CUDA GPU"),
        ("mps", "torch finds no Apple GPU"),
        ("gpu", "accepted are auto, cpu, cuda, cuda:N or mps"),
        ("cuda:x", "is unknown"),
        ("meta", "is not supported"),
    ],
)
def test_a_device_that_is_not_there(saved: Path, monkeypatch: pytest.MonkeyPatch, device: str, said: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert said in refusal(saved, device)


def test_too_little_memory_is_told(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SDFSMISPipeline, "to", to)
    assert "does not fit into the free memory of cpu" in refusal(saved, "cpu")


def test_the_libraries_get_their_voice_back(saved: Path) -> None:
    for library in (diffusers_logging, transformers_logging):
        before = library.get_verbosity(), library.is_progress_bar_enabled()
        load_pipeline(saved, "cpu")
        refusal(saved / "unet")
        assert (library.get_verbosity(), library.is_progress_bar_enabled()) == before
