"""Parity with the official implementation, stage by stage, on the golden tensors (see parity/README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import golden
from SDFSMISLib.benchmark.tasks import official_masks, to_bytes
from SDFSMISLib.model import SDFSMISPipeline, SupportQueryUNet
from SDFSMISLib.model.convert import image_encoder_for, processor_settings
from SDFSMISLib.model.sqi import query_probabilities, query_prototypes, support_prototypes
from SDFSMISLib.model.translator import resized_position_table

CASES = golden.inference_cases()
BATCH_SIZES = [1, 2, 1000]
# Every stage of an inference case; each must be in every file, but for the bytes that only some files hold.
FLOAT_STAGES = {
    "support_latents",
    "query_latents",
    "mask_latents",
    "support_fg_prototypes",
    "support_bg_prototypes",
    "query_prob",
    "query_fg_prototypes",
    "query_bg_prototypes",
    "dino_last_hidden_state",
    "vtct_feature",
    "conditioning",
    "unet_support_output",
    "bank_k",
    "bank_v",
    "unet_query_input",
    "unet_output",
    "pred_original_sample",
    "seg",
}
OTHER_STAGES = {"dino_pixels_u8", "dino_mask16", "seg_u8", "threshold", "mask_before_cca", "mask"}


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


class Recorder:
    """What flows through the pipeline's own modules while it runs, by forward hooks."""

    def __init__(self, pipe: SDFSMISPipeline) -> None:
        self.seen: dict[str, list[torch.Tensor]] = {}
        unet = pipe.unet
        self._handles = [
            unet.conv_in.register_forward_pre_hook(lambda _, inputs: self._keep("query_input", inputs[0])),
            unet.conv_in_ref.register_forward_pre_hook(lambda _, inputs: self._keep("support_input", inputs[0])),
            unet.conv_out.register_forward_hook(lambda _, __, output: self._keep("output", output)),
            pipe.image_encoder.register_forward_hook(
                lambda _, __, output: self._keep("hidden", output.last_hidden_state)
            ),
            pipe.translator.register_forward_pre_hook(lambda _, inputs: self._keep("feature", inputs[0])),
            pipe.translator.register_forward_hook(lambda _, __, output: self._keep("token", output)),
        ]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.cat(self.seen[name])

    def _keep(self, name: str, x: torch.Tensor) -> None:
        self.seen.setdefault(name, []).append(x)


def in_recorded_layout(rows: torch.Tensor, like: torch.Tensor, shots: int) -> torch.Tensor:
    """A bank's keys or values, (1, S*N, C), as the files hold them: (S*heads, N, d), row s*heads + k."""
    tokens, width = like.shape[1:]
    split = rows[0].unflatten(0, (shots, tokens)).unflatten(-1, (-1, width))  # (S, N, heads, d)
    return split.transpose(1, 2).flatten(0, 1)


def test_parity_folder_is_complete() -> None:
    names = set(golden.meta().get("cases", {}))
    assert {name[0] for name in names} >= set("abcde"), f"{golden.FOLDER}: the cases {sorted(names)} leave out a letter"
    for name in (*names, "d_prototype_functions", "g_postprocessing", "dinov2_518"):
        assert golden.case(name), f"case {name} is empty"
    for prefix in ("unet_sd", "unet_adapted", "unet", "vae", "dinov2", "dinov2_518", "mapper"):
        assert golden.weights(prefix), f"{golden.FOLDER}: weights.safetensors has no {prefix}"


def test_parity_of_the_adaptation() -> None:
    before, adapted = golden.weights("unet_sd"), golden.weights("unet_adapted")
    ours = SupportQueryUNet.from_stable_diffusion(golden.stable_diffusion_unet()).state_dict()
    assert ours.keys() == before.keys() | adapted.keys()
    for name, tensor in ours.items():
        golden.check_exact(name, tensor, adapted[name] if name in adapted else before[name])
        golden.largest_errors.pop(name)
    assert golden.weights("unet").keys() == adapted.keys()


@pytest.mark.parametrize("name", CASES)
def test_parity_of_every_stage(name: str) -> None:
    pipe, c = golden.pipeline(), golden.case(name)
    present = {stage.partition(":")[0] for stage in c}
    assert present >= (FLOAT_STAGES | OTHER_STAGES) - {"dino_pixels_u8"}, f"case {name} lacks a stage"
    described = golden.meta()["cases"][name]
    images, masks, queries = c["support_images"], c["support_masks"], c["query_images"]
    shots = len(images)
    assert (shots, len(queries)) == (described["shots"], described["queries"])

    # Image and mask latents, prototypes.
    query_latents, support_latents = pipe.encode_images(queries), pipe.encode_images(images)
    golden.check("query_latents", query_latents, c["query_latents"])
    golden.check("support_latents", support_latents, c["support_latents"])
    golden.check("mask_latents", pipe.encode_masks(masks), c["mask_latents"])
    foreground, background = support_prototypes(support_latents, masks)
    golden.check("support_fg_prototypes", foreground, c["support_fg_prototypes"])
    golden.check("support_bg_prototypes", background, c["support_bg_prototypes"])
    probabilities = query_probabilities(query_latents, foreground[None], background[None])
    golden.check("query_prob", probabilities, c["query_prob"])
    query_foreground, query_background = query_prototypes(query_latents, probabilities)
    golden.check("query_fg_prototypes", query_foreground, c["query_fg_prototypes"])
    golden.check("query_bg_prototypes", query_background, c["query_bg_prototypes"])

    # What DINOv2 sees, and where.
    if "dino_pixels_u8" in c:
        golden.check_exact("dino_pixels_u8", pipe.translator.encoder_bytes(images), c["dino_pixels_u8"])
    on_patches = pipe.translator.patch_weights(masks, c["dino_mask16"].shape[-1], official_details=True)
    golden.check_exact("dino_mask16", on_patches, c["dino_mask16"])

    # The support pass.
    with Recorder(pipe) as support:
        bank = pipe.encode_support(images[None], masks[None])
    golden.check("dino_last_hidden_state", support["hidden"], c["dino_last_hidden_state"])
    golden.check("vtct_feature", support["feature"], c["vtct_feature"])
    golden.check("conditioning", support["token"], c["conditioning"])
    golden.check("support_input", support["support_input"], torch.cat([c["support_latents"], c["mask_latents"]], dim=1))
    golden.check("unet_support_output", support["output"], c["unet_support_output"])
    golden.check("support_fg_prototypes", bank.foreground[0], c["support_fg_prototypes"])
    for key, recorded in c.items():
        kind, _, layer = key.partition(":")
        if kind in ("bank_k", "bank_v"):
            rows = (bank.keys if kind == "bank_k" else bank.values)[layer]
            golden.check(kind, in_recorded_layout(rows, recorded, shots), recorded)

    # The query pass: all queries in one batch.
    with Recorder(pipe) as query:
        predicted = pipe.predict(query_latents, bank)
    assert len(query.seen["output"]) == 1, "the queries went through one by one"
    golden.check("unet_query_input", query["query_input"], c["unet_query_input"])
    golden.check("unet_output", query["output"], c["unet_output"])
    golden.check("pred_original_sample", predicted, c["pred_original_sample"])
    golden.check("seg", pipe.decode(predicted), c["seg"])
    assert golden.largest_errors.keys() >= FLOAT_STAGES | {"dino_mask16"} | ({"dino_pixels_u8"} & c.keys())


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("name", CASES)
def test_parity_end_to_end_with_any_batch_size(name: str, batch_size: int) -> None:
    """Byte maps within one level, masks the same, however many queries share a pass."""
    pipe, c = golden.pipeline(), golden.case(name)
    out = pipe(c["support_images"], c["support_masks"], c["query_images"], batch_size=batch_size)
    golden.check("seg", out.maps, c["seg"])
    golden.check("seg", out.probabilities, c["seg"].mean(1))
    levels = to_bytes(out.maps.numpy())
    off = np.abs(levels.astype(int) - c["seg_u8"].numpy().astype(int))
    assert off.max() <= 1 and (off > 0).mean() <= 1e-3, f"{(off > 0).sum()} bytes differ, by up to {off.max()}"
    golden.note("seg_u8 (share of bytes)", float((off > 0).mean()), float(off.max()) / 255)
    masks = official_masks(levels)
    assert abs(float(masks.threshold) - float(c["threshold"])) <= 0.25 / 255 + 1e-7
    for stage, ours in (("mask_before_cca", masks.before_components), ("mask", masks.masks)):
        differ = (torch.from_numpy(ours) != c[stage].bool()).double().mean()
        assert differ <= 1e-3, f"{stage}: {differ:.2%} of the pixels differ"
        golden.note(f"{stage} (share of pixels)", float(differ), float(differ))


@pytest.mark.parametrize("name", golden.sub_cases("d_prototype_functions"))
def test_parity_of_the_prototypes_alone(name: str) -> None:
    c = golden.part("d_prototype_functions", name)
    foreground, background = support_prototypes(c["support_latents"], c["support_masks"])
    golden.check("support_fg_prototypes", foreground, c["support_fg"])
    golden.check("support_bg_prototypes", background, c["support_bg"])
    probabilities = query_probabilities(c["query_latents"], foreground[None], background[None])
    golden.check("query_prob", probabilities, c["prob"])
    query_foreground, query_background = query_prototypes(c["query_latents"], probabilities)
    golden.check("query_fg_prototypes", query_foreground, c["query_fg"])
    golden.check("query_bg_prototypes", query_background, c["query_bg"])


def test_parity_of_a_resized_position_table(tmp_path: Path) -> None:
    """DINOv2's released table is larger than the crop's patch grid; the form of its interpolation matters."""
    c = golden.case("dinov2_518")
    (recorded,) = (x for key, x in c.items() if key.startswith("position_embeddings"))
    folder = golden.write_dinov2(tmp_path, "dinov2_518")
    table = golden.weights("dinov2_518")["embeddings.position_embeddings"]
    grid = round((recorded.shape[1] - 1) ** 0.5)
    golden.check("position_table", resized_position_table(table, grid), recorded)
    encoder = image_encoder_for(folder, processor_settings(folder)["crop"])
    golden.check("position_table", encoder.embeddings.position_embeddings, recorded)
    pixels = golden.pipeline().translator.encoder_pixels(c["dino_pixels_u8"])
    golden.check("last_hidden_state", encoder(pixels).last_hidden_state, c["last_hidden_state"])


def test_parity_report_of_the_largest_errors() -> None:
    """`pytest -rP -k parity` prints how close each stage came that this process compared."""
    print(f"{'stage':32} relative  element   ({golden.FOLDER})")
    for stage, (relative, element) in sorted(golden.largest_errors.items()):
        print(f"{stage:32} {relative:.1e}   {element:.1e}")
