"""Parity of training with the official implementation: loss, gradients, one update, the schedule (golden case f)."""

from __future__ import annotations

import copy
import json
from functools import cache

import pytest
import torch

import golden
from SDFSMISLib.model import SDFSMISPipeline
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.learner import EpisodeLearner, EpisodeLoss
from SDFSMISLib.training.trainer import learn_only, new_optimizer, rate_share, set_rate
from SDFSMISLib.training.volumes import EpisodeBatch

OFFICIAL = TrainingConfig(
    cases="",
    output="",
    steps=15_000,
    rate=1e-5,
    translator_rate=5.0,
    schedule="polynomial",
    warmup=0,
    learned=("unet", "translator"),
    losses={"latent": 1.0},
)
KINDS = ["mean", "sampled"]  # latents: the posterior's mean, and draws with recorded noise


def networks() -> SDFSMISPipeline:
    """The recorded networks, ours to change."""
    whole = golden.pipeline()
    parts = {name: copy.deepcopy(network) for name, network in whole.components.items()}
    pipe = SDFSMISPipeline(**parts, official_details=True)
    learn_only(pipe, OFFICIAL.learned)
    return pipe


def learned(pipe: SDFSMISPipeline, kind: str) -> EpisodeLoss:
    case = golden.case("f_train")
    batch = EpisodeBatch(
        support_images=case["support_images"][None, :, 0],
        support_masks=case["support_masks"][None].float(),
        query_images=case["query_images"][:, 0],
        query_masks=case["query_masks"].float(),
        painted=1,
    )
    names = ("support_image", "support_mask", "query_image", "query_mask")
    noises = tuple(case[f"noise.{name}"] for name in names) if kind == "sampled" else None
    return EpisodeLearner(pipe, OFFICIAL)(batch, noises)


@cache
def descended(kind: str) -> tuple[SDFSMISPipeline, EpisodeLoss]:
    """Networks with the gradients of one step."""
    pipe = networks()
    result = learned(pipe, kind)
    result.loss.backward()
    return pipe, result


def parameters(pipe: SDFSMISPipeline) -> dict[str, torch.nn.Parameter]:
    named = {f"unet.{name}": value for name, value in pipe.unet.named_parameters()}
    return named | {f"mapper.{name}": value for name, value in pipe.translator.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_official_one(kind):
    recorded = golden.case("f_train")[f"{kind}.loss"]
    golden.check("training loss", descended(kind)[1].loss.detach()[None], recorded)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prediction_is_the_official_one(kind):
    predicted = descended(kind)[1].predicted
    golden.check("training prediction", -predicted, golden.case("f_train")[f"{kind}.prediction"])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_official_ones(kind):
    ours = parameters(descended(kind)[0])
    recorded = golden.part("f_train", kind)
    checked = 0
    for name, value in recorded.items():
        if name.startswith("grad."):
            gradient = ours[name.removeprefix("grad.")].grad
            assert gradient is not None
            golden.check("training gradient", gradient, value, golden.GRADIENT)
            checked += 1
    assert checked == 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_of_every_gradient_is_the_official_one(kind):
    ours = parameters(descended(kind)[0])
    recorded = json.loads((golden.FOLDER / "train_grad_norms.json").read_text(encoding="utf-8"))[kind]
    assert set(recorded) == set(ours)
    for name, norm in recorded.items():
        gradient = ours[name].grad
        found = 0.0 if gradient is None else float(gradient.norm())  # one token's weight is 1: its query has no part
        assert found == pytest.approx(norm, rel=golden.GRADIENT, abs=1e-6), name


def test_an_update_is_the_official_one():
    pipe = networks()
    learned(pipe, "mean").loss.backward()
    optimizer = new_optimizer(pipe, OFFICIAL)
    set_rate(optimizer, OFFICIAL.rate * rate_share(0, OFFICIAL))
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], OFFICIAL.clip)
    optimizer.step()
    ours, checked = parameters(pipe), 0
    for name, value in golden.part("f_train", "after_step").items():
        difference = (ours[name].detach() - value).abs()
        assert (difference <= 2e-7).float().mean() >= 0.999, name
        checked += 1
    assert checked == 4


def test_rates_fall_as_the_official_ones():
    table = golden.meta()["train"]["lr_table"]
    optimizer = new_optimizer(networks(), OFFICIAL)
    for step, (unet, mapper) in table.items():
        set_rate(optimizer, OFFICIAL.rate * rate_share(int(step), OFFICIAL))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([unet, mapper], rel=1e-6)
