"""`sdfsmis bench` at a tiny resolution: what it reports and that all schedules give the same masks; never how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.upsampling import Upsample2D

import SDFSMISLib
from SDFSMISLib.cli import bench
from SDFSMISLib.cli import bench_schedules as schedules
from SDFSMISLib.cli.bench_schedules import CHUNK, NAIVE, OURS, OURS_HALF, PARTS, Job, flop
from SDFSMISLib.errors import InputError
from SDFSMISLib.model.built_in import new_built_in
from SDFSMISLib.model.cpu import FoldedUpsample, fold_upsampling


def measured_here(job: Job) -> dict[str, Any]:
    """What a process of its own would measure; one repetition."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules, "LEAST_SECONDS", 0.0)
        patch.setattr(schedules, "LONG_PRODUCT", 0.0)  # a small matrix product is enough
        patch.setattr("SDFSMISLib.model.memory.keep_freed_memory", lambda: False)  # it is for a whole process
        return schedules.measure(job)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a real run, also written to a file; one of its schedules in a process of its own, the others in this one."""
    output = tmp_path_factory.mktemp("bench") / "report.json"
    stages: list[tuple[int, int, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("SDFSMISLib.cli.bench.SIZES", {"built-in": 96})
        in_process = bench._in_process
        patch.setattr(bench, "_in_process", lambda job: (in_process if job.schedule == NAIVE else measured_here)(job))
        found = bench.run_bench(
            ["built-in"], queries=3, resolution=64, device="cpu", output=output, on_stage=lambda *x: stages.append(x)
        )
    assert json.loads(output.read_text(encoding="utf-8")) == found
    assert [x[:2] for x in stages] == [(0, 3), (1, 3), (2, 3)]
    return found


def test_all_schedules_give_the_same_masks(report: dict[str, Any]) -> None:
    (entry,) = report["sizes"]
    assert set(entry["schedules"]) == {NAIVE, CHUNK, OURS}
    assert 0 < entry["mask_share"] < 1  # else equal masks would say nothing
    for run in entry["schedules"].values():
        assert run["largest_difference"] < 1e-4
        assert run["differing_pixels"] == 0


def test_the_parts_add_up_to_the_whole(report: dict[str, Any]) -> None:
    for run in report["sizes"][0]["schedules"].values():
        assert set(run["parts"]) == set(PARTS)
        assert sum(run["parts"].values()) == pytest.approx(run["seconds_per_slice"])
        assert min(run["parts"].values()) > 0
        assert run["peak_memory_mib"] >= run["working_memory_mib"] >= 0


def test_our_schedule_says_what_share_of_the_matrix_rate_it_reaches(report: dict[str, Any]) -> None:
    rate = report["sizes"][0]["schedules"][OURS]["matrix_rate"]
    assert rate["share"] == pytest.approx(rate["reached"] / rate["measured"])
    assert rate["flop_per_slice"] > 1e8


def test_the_report_is_printed(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    bench.print_report(report)
    shown = capsys.readouterr().out
    for text in ("built-in", "speed-up", "U-Net, query", "naive", "per chunk", "ours", "share"):
        assert text in shown


def test_attention_is_counted_at_any_size(tmp_path: Path) -> None:
    """Twice the side is four times the work, and more only by attention, which grows with the fourth power."""
    found = []
    for side in (64, 128):
        job = Job("built-in", OURS, 1, 1, side, "cpu", str(tmp_path / "x.npy"))
        image, mask, slices = schedules._inputs(job)
        with torch.no_grad():
            pipeline = new_built_in()
            encode = partial(pipeline.encode_support, image[None], mask[None])
            found.append(flop(pipeline, encode, slices)[1])
    assert 4 < found[1] / found[0] < 8


def test_the_half_precision_schedule_runs(tmp_path: Path) -> None:
    """It is for a GPU; that its types fit together shows on a CPU, too."""
    job = Job("built-in", OURS_HALF, 2, 2, 64, "cpu", str(tmp_path / "half.npy"))
    result = measured_here(job)
    assert result["repeats"] == 1
    probabilities = np.load(job.probabilities)
    assert probabilities.shape == (2, 64, 64) and np.isfinite(probabilities).all()


def test_sd15_has_the_size_of_stable_diffusion() -> None:
    """Parameters as published: U-Net 860 M (without what the method adds), autoencoder 84 M, DINOv2-base 87 M."""
    with torch.device("meta"):
        pipeline = schedules.new_pipeline("sd15", 256)
    count = {name: sum(x.numel() for x in part.parameters()) for name, part in pipeline.components.items()}
    assert count["unet"] - 11_520 - 23_360 == 859_520_964  # conv_in is wider by 4 channels, conv_in_ref is added
    assert count["vae"] == 83_653_863
    assert count["image_encoder"] == pytest.approx(86.6e6, rel=0.02)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"sizes": ["huge"]}, "huge"),
        ({"sizes": []}, "accepted are"),
        ({"queries": 0}, "queries"),
        ({"rounds": 0}, "rounds"),
        ({"batch_size": 0}, "batch"),
        ({"resolution": 100}, "multiple of 8"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        bench.run_bench(**({"sizes": ["built-in"]} | wrong))


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        bench.run_bench(["built-in"], output=tmp_path / "file" / "report.json", device="cpu")


# -- what makes our schedule fast leaves the results as they are


def folded(channels: int, layout: torch.memory_format = torch.contiguous_format) -> tuple[Upsample2D, FoldedUpsample]:
    torch.manual_seed(0)
    plain = Upsample2D(channels, use_conv=True, out_channels=24).to(memory_format=layout)
    return plain, FoldedUpsample(plain.conv)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 3), (8, 8)])
def test_folded_upsampling_is_upsampling(shape: tuple[int, int], layout: torch.memory_format) -> None:
    plain, ours = folded(32, layout)
    hidden = torch.randn(2, 32, *shape).to(memory_format=layout)
    torch.testing.assert_close(ours(hidden), plain(hidden), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (7, 5)])
def test_folded_upsampling_takes_an_output_size(size: tuple[int, int]) -> None:
    plain, ours = folded(32)
    hidden = torch.randn(1, 32, 4, 3)
    torch.testing.assert_close(ours(hidden, size), plain(hidden, size), rtol=1e-5, atol=1e-5)


def test_folded_upsampling_passes_gradients_on() -> None:
    plain, ours = folded(32)
    hidden = torch.randn(1, 32, 4, 4)
    weight = torch.randn(1, 24, 8, 8)
    gradients = []
    for module in (plain, ours):
        (module(hidden) * weight).sum().backward()
        gradients.append(plain.conv.weight.grad.clone())
        plain.conv.weight.grad = None
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_a_network_of_folded_upsampling_keeps_its_weights_and_results() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 256),
        layers_per_block=1,
        norm_num_groups=8,
    ).eval()
    latents = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        before, state = vae.decode(latents).sample, set(vae.state_dict())
        fold_upsampling(vae)
        after = vae.decode(latents).sample
    assert any(isinstance(module, FoldedUpsample) for module in vae.modules())
    assert set(vae.state_dict()) == state
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_a_pipeline_set_up_for_inference_segments_and_saves_as_before(tmp_path: Path) -> None:
    plain, fast = new_built_in(), new_built_in().for_inference()
    assert not any(part.training for part in fast.components.values())
    torch.manual_seed(0)
    images, masks = torch.rand(3, 3, 32, 32) * 2 - 1, torch.zeros(1, 32, 32)
    masks[:, 8:20, 8:20] = 1
    for pipeline in (plain, fast):
        pipeline.vae.eval()
    one, other = (x(images[:1], masks, images[1:]).probabilities for x in (plain, fast))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    fast.save_pretrained(tmp_path)
    again = type(fast).from_pretrained(tmp_path)
    for name, part in plain.components.items():
        for key, value in part.state_dict().items():
            assert F.mse_loss(again.components[name].state_dict()[key], value) == 0, (name, key)


def test_freed_memory_is_kept() -> None:
    """Large blocks come back without new pages, where the C library is known; in a process of its own."""
    code = (
        "import resource, platform, numpy as np; from SDFSMISLib.model.memory import keep_freed_memory\n"
        "kept = keep_freed_memory(); assert kept == (platform.libc_ver()[0] == 'glibc')\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "x = np.ones(10_000_000); del x; before = faults(); x = np.ones(10_000_000)\n"
        "assert not kept or faults() - before < 1000, faults() - before"
    )
    pytest.importorskip("resource")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(SDFSMISLib.__file__).parents[1])
