"""Pipeline folders made of Stable Diffusion and DINOv2, and of what the official code trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

import golden
from SDFSMISLib.benchmark.tasks import official_masks, to_bytes
from SDFSMISLib.errors import InputError
from SDFSMISLib.model import SDFSMISPipeline, convert
from SDFSMISLib.model.convert import convert_official, convert_stable_diffusion, processor_settings
from SDFSMISLib.model.loading import load_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sd`, `dinov2` (with a larger position table than the crop needs, as the released one) and `official`."""
    folder = tmp_path_factory.mktemp("sources")
    golden.write_stable_diffusion(folder / "sd")
    golden.write_dinov2(folder / "dinov2", "dinov2_518")
    golden.write_official(folder / "official")
    return folder


@pytest.fixture
def own(sources: Path, tmp_path: Path) -> Path:
    """A copy of the sources that a test may damage."""
    return Path(shutil.copytree(sources, tmp_path / "sources"))


def inputs(name: str | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    c = golden.case(name or golden.inference_cases()[0])
    return c["support_images"], c["support_masks"], c["query_images"]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def refusal(convert: Callable[..., Path], *args: Any, **kwargs: Any) -> str:
    """The text of the InputError; nothing may be left behind."""
    output = Path(args[-1])
    before = sorted(output.parent.iterdir()) if output.parent.is_dir() else []
    with pytest.raises(InputError) as caught:
        convert(*args, **kwargs)
    assert "\n" not in str(caught.value)
    assert (sorted(output.parent.iterdir()) if output.parent.is_dir() else []) == before
    return str(caught.value)


# -- Stable Diffusion and DINOv2 --------------------------------------------------------------------------------------


def test_stable_diffusion_becomes_a_pipeline(sources: Path, tmp_path: Path) -> None:
    output = convert_stable_diffusion(sources / "sd", sources / "dinov2", tmp_path / "new" / "pipeline", resolution=64)
    assert [path.name for path in output.parent.iterdir()] == ["pipeline"]
    pipe = SDFSMISPipeline.from_pretrained(output)
    assert (pipe.config.resolution, pipe.config.official_details) == (64, False)
    unet = pipe.unet.state_dict()
    for name, tensor in (golden.weights("unet_sd") | golden.weights("unet_adapted")).items():
        assert torch.equal(unet[name], tensor), name
    width = golden.config("dinov2")["hidden_size"]
    sizes = (pipe.translator.config.input_dim, pipe.translator.config.hidden_dim, pipe.translator.config.output_dim)
    assert sizes == (width, 2 * width, golden.config("unet")["cross_attention_dim"])
    recorded = golden.case("dinov2_518")
    (table,) = (x for key, x in recorded.items() if key.startswith("position_embeddings"))
    golden.check("position_table", pipe.image_encoder.embeddings.position_embeddings, table)
    maps = pipe(*inputs()).maps
    assert maps.isfinite().all() and maps.std() > 0
    assert torch.equal(load_pipeline(output, "cpu")(*inputs()).maps, maps)


def test_a_converted_folder_names_no_place_of_this_machine(sources: Path, tmp_path: Path) -> None:
    for output in (
        convert_stable_diffusion(sources / "sd", sources / "dinov2", tmp_path / "a"),
        convert_official(sources / "official", tmp_path / "b"),
    ):
        for path in output.rglob("*.json"):
            text = path.read_text(encoding="utf-8")
            assert str(sources) not in text and str(tmp_path) not in text and "in_channels_ref" not in text, path


def test_the_seed_decides_the_translator(sources: Path, tmp_path: Path) -> None:
    first, same, other = (
        load_file(
            convert_stable_diffusion(sources / "sd", sources / "dinov2", tmp_path / name, seed=seed)
            / "translator"
            / WEIGHTS
        )["mlp.0.weight"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_float16_halves_the_files(sources: Path, tmp_path: Path) -> None:
    output = convert_stable_diffusion(sources / "sd", sources / "dinov2", tmp_path / "half", dtype=torch.float16)
    for path in output.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
    assert SDFSMISPipeline.from_pretrained(output)(*inputs()).maps.isfinite().all()


def test_the_autoencoder_may_have_its_old_names(own: Path, tmp_path: Path) -> None:
    """Stable Diffusion 1.5 was released with them."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    path = own / "sd" / "vae" / WEIGHTS
    state = {}
    for name, tensor in load_file(path).items():
        for new, former in old.items():
            name = name.replace(f".attentions.0.{new}.", f".attentions.0.{former}.")
        state[name] = tensor
    assert any(".proj_attn." in name for name in state)
    save_file(state, path, metadata={"format": "pt"})
    pipe = load_pipeline(convert_stable_diffusion(own / "sd", own / "dinov2", tmp_path / "out"), "cpu")
    assert all(torch.equal(pipe.vae.state_dict()[name], x) for name, x in golden.weights("vae").items())


def test_a_folder_without_a_processor_gets_dinov2s(own: Path, tmp_path: Path) -> None:
    (own / "dinov2" / "preprocessor_config.json").unlink()
    pipe = load_pipeline(convert_stable_diffusion(own / "sd", own / "dinov2", tmp_path / "out"), "cpu")
    assert (pipe.translator.config.resize_edge, pipe.translator.config.crop) == (256, 224)


def test_another_processor_gives_another_grid(own: Path, tmp_path: Path) -> None:
    patch = golden.config("dinov2")["patch_size"]
    path = own / "dinov2" / "preprocessor_config.json"
    edit_json(path, size=12 * patch, crop_size=10 * patch, image_mean=[0.5, 0.25, 0.125], image_std=[1, 2, 4])
    pipe = load_pipeline(convert_stable_diffusion(own / "sd", own / "dinov2", tmp_path / "out"), "cpu")
    assert pipe.image_encoder.embeddings.position_embeddings.shape[1] == 101
    assert pipe.image_encoder.config.image_size == 10 * patch
    assert tuple(pipe.translator.config.image_mean) == (0.5, 0.25, 0.125)
    assert pipe(*inputs()).maps.isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [
        {"resample": 2},
        {"do_center_crop": False},
        {"size": {"height": 256, "width": 256}},
        {"crop_size": {"height": 224, "width": 200}},
        {"crop_size": 300},
    ],
)
def test_a_processor_of_another_kind_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    golden.write_dinov2(tmp_path)
    edit_json(tmp_path / "preprocessor_config.json", size={"shortest_edge": 256}, crop_size=224)
    edit_json(tmp_path / "preprocessor_config.json", **changes)
    with pytest.raises(InputError, match="preprocessor_config.json is not supported"):
        processor_settings(tmp_path)


@pytest.mark.parametrize(
    "path, changes, said",
    [
        ("sd/unet", {"time_embedding_act_fn": "silu"}, "has time_embedding_act_fn = 'silu'"),
        ("sd/unet", {"center_input_sample": True}, "has center_input_sample = True, which SD-FSMIS cannot use"),
        ("sd/unet", {"_class_name": "SD3Transformer2DModel"}, "holds SD3Transformer2DModel"),
        ("sd/vae", {"latent_channels": 3}, "do not fit AutoencoderKL with its config.json"),
        ("dinov2", {"model_type": "dinov2_with_registers"}, "holds dinov2_with_registers; expected is dinov2"),
    ],
)
def test_another_kind_of_model_is_refused(
    own: Path, tmp_path: Path, path: str, changes: dict[str, Any], said: str
) -> None:
    edit_json(own / path / "config.json", **changes)
    assert said in refusal(convert_stable_diffusion, own / "sd", own / "dinov2", tmp_path / "out")


def test_a_resolution_must_fit_the_autoencoder(sources: Path, tmp_path: Path) -> None:
    for resolution in (0, -64, 65):
        text = refusal(
            convert_stable_diffusion, sources / "sd", sources / "dinov2", tmp_path / "out", resolution=resolution
        )
        assert f"The resolution {resolution} is no multiple" in text


def test_the_weights_of_two_models_do_not_mix(own: Path, tmp_path: Path) -> None:
    """An inpainting U-Net takes more channels than the autoencoder gives."""
    path = own / "sd" / "unet"
    state = load_file(path / WEIGHTS)
    state["conv_in.weight"] = torch.cat([state["conv_in.weight"]] * 2, dim=1)
    save_file(state, path / WEIGHTS, metadata={"format": "pt"})
    edit_json(path / "config.json", in_channels=state["conv_in.weight"].shape[1])
    assert "latent channels" in refusal(convert_stable_diffusion, own / "sd", own / "dinov2", tmp_path / "out")


# -- sources that cannot be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["sd/unet", "sd/vae", "dinov2"])
def test_pickles_are_refused(own: Path, tmp_path: Path, path: str) -> None:
    weights = next((own / path).glob("*.safetensors"))
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    text = refusal(convert_stable_diffusion, own / "sd", own / "dinov2", tmp_path / "out")
    assert str(weights.with_suffix(".bin")) in text and "save_pretrained(folder, safe_serialization=True)" in text


def test_a_single_file_is_refused(sources: Path, tmp_path: Path) -> None:
    for name, said in (("v1-5.ckpt", "pickled checkpoint"), ("v1-5.safetensors", "from_single_file")):
        (tmp_path / name).write_bytes(b"x")
        assert said in refusal(convert_stable_diffusion, tmp_path / name, sources / "dinov2", tmp_path / "out")


@pytest.mark.parametrize("path", ["sd/unet", "sd/vae", "dinov2"])
def test_truncated_weights_are_refused(own: Path, tmp_path: Path, path: str) -> None:
    weights = next((own / path).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    text = refusal(convert_stable_diffusion, own / "sd", own / "dinov2", tmp_path / "out")
    assert f"{weights} is missing, truncated" in text


@pytest.mark.parametrize("path", ["sd/unet", "sd/vae", "dinov2"])
def test_weights_that_lack_a_tensor_are_refused(own: Path, tmp_path: Path, path: str) -> None:
    """The libraries would make one up."""
    weights = next((own / path).glob("*.safetensors"))
    state = load_file(weights)
    state.pop(max(state))
    save_file(state, weights, metadata={"format": "pt"})
    assert "lack 1 of the tensors" in refusal(convert_stable_diffusion, own / "sd", own / "dinov2", tmp_path / "out")


def test_a_missing_source_is_refused(own: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert "no-such does not exist" in refusal(convert_stable_diffusion, tmp_path / "no-such", own / "dinov2", output)
    assert "owner/name is no folder here" in refusal(convert_stable_diffusion, own / "sd", "owner/name", output)
    assert "owner/name is no folder here" in refusal(convert_stable_diffusion, "owner/name", own / "dinov2", output)
    shutil.rmtree(own / "sd" / "vae")
    assert "vae is missing" in refusal(convert_stable_diffusion, own / "sd", own / "dinov2", output)


def test_a_hub_id_is_downloaded_without_what_is_not_needed(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(sources / "sd")

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    output = convert_stable_diffusion("owner/name", sources / "dinov2", tmp_path / "out")
    assert isinstance(load_pipeline(output, "cpu"), SDFSMISPipeline)
    assert asked["name"] == "owner/name" and asked["use_safetensors"] and asked["text_encoder"] is None


def test_dinov2_may_be_a_hub_id(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cached_file(name: str, file: str, **_: Any) -> str:
        assert name == "owner/name"
        return str(sources / "dinov2" / file)

    monkeypatch.setattr(convert, "cached_file", cached_file)
    output = convert_stable_diffusion(sources / "sd", "owner/name", tmp_path / "out")
    assert (
        load_pipeline(output, "cpu").translator.config.crop == golden.config("image_processor")["crop_size"]["height"]
    )


# -- the output -------------------------------------------------------------------------------------------------------


def test_an_output_that_exists_is_kept_unless_asked(sources: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()  # an empty folder is free
    convert_stable_diffusion(sources / "sd", sources / "dinov2", output, seed=1)
    before = (output / "translator" / WEIGHTS).read_bytes()
    assert "exists already" in refusal(convert_stable_diffusion, sources / "sd", sources / "dinov2", output)
    damaged = tmp_path / "damaged"
    with pytest.raises(InputError):  # a failure leaves the old one
        convert_stable_diffusion(damaged, sources / "dinov2", output, overwrite=True)
    assert (output / "translator" / WEIGHTS).read_bytes() == before
    convert_stable_diffusion(sources / "sd", sources / "dinov2", output, seed=2, overwrite=True)
    assert (output / "translator" / WEIGHTS).read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_pipeline_of_ours_is_never_replaced(own: Path, tmp_path: Path) -> None:
    (own / "sd" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    for output in (own / "sd", own / "dinov2", own / "dinov2" / "config.json"):
        text = refusal(convert_stable_diffusion, own / "sd", own / "dinov2", output, overwrite=True)
        assert "is no SDFSMIS pipeline, so it is not replaced" in text


def test_an_output_that_cannot_be_written(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    text = refusal(convert_stable_diffusion, sources / "sd", sources / "dinov2", tmp_path / "file" / "out")
    assert "Cannot write" in text

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SDFSMISPipeline, "save_pretrained", full)
    text = refusal(convert_stable_diffusion, sources / "sd", sources / "dinov2", tmp_path / "out")
    assert "Cannot write" in text and "No space left on device" in text


# -- what the official code trained -----------------------------------------------------------------------------------


def check_masks(output: Path, names: list[str] | None = None) -> None:
    """The folder gives the golden masks of some cases, by default of the first."""
    pipe = load_pipeline(output, "cpu")
    assert pipe.config.official_details
    for name in names or golden.inference_cases()[:1]:
        maps = pipe(*inputs(name)).maps
        golden.check("seg", maps, golden.case(name)["seg"])
        differ = official_masks(to_bytes(maps.numpy())).masks != golden.case(name)["mask"].numpy().astype(bool)
        assert np.mean(differ) <= 1e-3


def as_training_folder(folder: Path) -> Path:
    """Before its end a training leaves checkpoints, with nothing beside them."""
    for step in (500, 1500, 1000):
        (folder / f"checkpoint-{step}").mkdir()
    for name in ("unet", "image_projector"):
        (folder / name).rename(folder / "checkpoint-1500" / name)
    (folder / "checkpoint-notes").mkdir()
    return folder


def test_the_finished_pipeline_gives_the_same_masks(sources: Path, tmp_path: Path) -> None:
    check_masks(convert_official(sources / "official", tmp_path / "out"), golden.inference_cases())


def test_a_checkpoint_takes_the_rest_from_around_it(own: Path, tmp_path: Path) -> None:
    folder = as_training_folder(own / "official")
    check_masks(convert_official(folder, tmp_path / "last"))
    check_masks(convert_official(folder / "checkpoint-1500", tmp_path / "named"))
    assert "has neither a unet folder" in refusal(convert_official, folder / "checkpoint-500", tmp_path / "out")


def test_a_checkpoint_alone_is_told_the_autoencoder_and_image_encoder(own: Path, tmp_path: Path) -> None:
    checkpoint = as_training_folder(own / "official") / "checkpoint-1500"
    alone = Path(shutil.move(checkpoint, tmp_path / "weights"))
    golden.write_dinov2(tmp_path / "dinov2")
    output = tmp_path / "out"
    text = refusal(convert_official, alone, output)
    assert "has no autoencoder (vae); give the folder or hub id of Stable Diffusion" in text
    text = refusal(convert_official, alone, output, stable_diffusion=own / "sd")
    assert "has no image encoder (image_encoder or dinov2); give the folder or hub id of DINOv2" in text
    check_masks(convert_official(alone, output, stable_diffusion=own / "sd", dinov2=tmp_path / "dinov2"))


@pytest.mark.parametrize("stored", [4, 8])
def test_the_number_of_input_channels_is_that_of_the_weights(own: Path, tmp_path: Path, stored: int) -> None:
    """The official configuration may still carry Stable Diffusion's."""
    edit_json(own / "official" / "unet" / "config.json", in_channels=stored, in_channels_ref=8)
    check_masks(convert_official(own / "official", tmp_path / "out"))


def test_other_names_of_the_parts_are_found(own: Path, tmp_path: Path) -> None:
    folder = own / "official"
    (folder / "image_projector").rename(folder / "mapper")
    (folder / "processor").rename(folder / "image_processor")
    check_masks(convert_official(folder, tmp_path / "out"))


def test_the_processor_may_lie_with_the_image_encoder(own: Path, tmp_path: Path) -> None:
    folder = own / "official"
    shutil.move(folder / "processor" / "preprocessor_config.json", folder / "image_encoder")
    (folder / "processor").rmdir()
    check_masks(convert_official(folder, tmp_path / "out"))


def test_an_official_folder_that_is_none(own: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert "has neither a unet folder nor checkpoint-N" in refusal(convert_official, own / "dinov2", output)
    assert "no second input convolution" in refusal(convert_official, own / "sd", output)
    assert "does not exist" in refusal(convert_official, own / "nothing", output)
    (own / "official" / "projector.pt").write_bytes(b"x")
    assert "pickled checkpoint" in refusal(convert_official, own / "official" / "projector.pt", output)


def test_official_weights_that_do_not_fit(own: Path, tmp_path: Path) -> None:
    path = own / "official" / "unet" / WEIGHTS
    state = load_file(path)
    half = state["conv_in.weight"].shape[1] // 2
    save_file(state | {"conv_in.weight": state["conv_in.weight"][:, :half].clone()}, path, metadata={"format": "pt"})
    assert "two of one shape" in refusal(convert_official, own / "official", tmp_path / "out")
    save_file(state, path, metadata={"format": "pt"})
    weights = own / "official" / "image_projector" / WEIGHTS
    projector = load_file(weights)
    first = projector["mlp.0.weight"]
    save_file(projector | {"mlp.0.weight": torch.cat([first, first], dim=1)}, weights, metadata={"format": "pt"})
    edit_json(own / "official" / "image_projector" / "config.json", input_dim=2 * first.shape[1])
    text = refusal(convert_official, own / "official", tmp_path / "out")
    assert "made for a width of" in text and "image encoder" in text


def test_an_official_pickle_is_refused(own: Path, tmp_path: Path) -> None:
    path = own / "official" / "image_projector" / WEIGHTS
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    assert "pickled checkpoint" in refusal(convert_official, own / "official", tmp_path / "out")
