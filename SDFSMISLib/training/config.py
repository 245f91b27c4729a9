"""The configuration of a training run, in one JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from SDFSMISLib.errors import InputError
from SDFSMISLib.model.built_in import Size
from SDFSMISLib.training import CONFIGURATIONS

__all__ = ["TrainingConfig"]

Kind = Literal["propagate", "independent", "cross", "paper"]
Part = Literal["unet", "image_encoder", "translator", "decoder"]
Loss = Literal["entropy", "dice", "latent", "autoencoder"]
Ablation = Literal["translator", "prototype", "bank"]


class TrainingConfig(BaseModel):
    """All parameters of a training run: one JSON file.

    >>> config = TrainingConfig(cases="", output="run", steps=10)
    >>> config.batch, config.mix["propagate"]
    (8, 0.6)

    Attributes:
        cases: manifest of training volumes (only its `split: train`), or "": synthetic volumes only.
        output: folder of checkpoints, pictures, the finished pipeline and the log: `log.jsonl`, and tensorboard's files
            if that package is installed (it is not a dependency).
        start: a pipeline folder, a hub id or "built-in" to start from; "": random weights. Inputs that networks of our
            own kind lack there start at zero.
        network: size of new networks, if `start` is ""; by default that of `built-in`.
        seed: of weights, episodes and draws.
        mix: share of each kind of episode: propagate, independent, cross, paper.
        synthetic_share, label_share, rollout, swapped, known, ahead: see `EpisodeSampler`.
        late: share of the steps, at the end, in which `swapped` applies.
        synthetic_count: synthetic volumes to draw episodes from.
        label_maps: manifest of label volumes without images, which are drawn like synthetic ones; "": none.
        group_weights: how often a group of scans is drawn, as a factor; 1 for groups that are not named.
        without_hints: share of the passes without the finished neighbour's image and mask as inputs, without likeness
            and known lines, so that the supports' keys, values and condition have to tell what they know.
        on_device: make episodes on the device of the networks, where all volumes then lie; else in the workers.
        across: targets of `cross` episodes: `labels` that both scans have, or `registration`: parts of one scan that
            are warped onto the other, which needs no labels, with one painted slice each and none `swapped`; some
            `propagate` episodes then have a painted slice of another scan too; see `UnlabelledSampler`.
        window: how intensities of training scans become [-1, 1]: `robust`, or `minmax`, the paper's.
        supervoxels: `slic`; `felzenszwalb`, the literature's; `labels`: labels in their place, as in the official code.
        supervoxel_size: least voxels of a `felzenszwalb` supervoxel.
        shippable: leave out groups whose terms forbid passing on weights.
        held_out: ids of training cases that are measured every `validate_every` steps and not trained on.
        autoencoder_steps, autoencoder_rate: first stage, the decoder; 0 steps: it stays as in `start`.
        denoising_steps, denoising_rate: second stage, the U-Net on images without labels; 0 steps: left out.
        steps: optimiser steps of the last stage, on episodes. batch: episodes per pass. accumulate: passes per step.
        minutes: length of the last stage by the clock, in place of `steps`: rate and `late` follow the time, so that
            the rate is at its end in the last step, however fast the computer is. 0: `steps` counts.
        rate: peak learning rate. translator_rate: factor of it for the translator.
        schedule: `cosine` to 3 %, or `polynomial` of power 1 to 0.01 %, the paper's.
        warmup: steps. decay: of AdamW. clip: of the gradient's norm.
        average: decay of the exponential moving average that is the result; 0: none.
        learned: the parts that learn in the last stage: unet, image_encoder, translator, decoder.
        without: parts of the method left out, for ablations; see `SDFSMISPipeline`.
        losses: weight of each: `entropy` and `dice` on the decoded mask; `latent`, mean squared error of the mask
            latent, the paper's only one; `autoencoder`, absolute error of an image or mask that the decoder makes of
            its own latent, for a decoder that learns too.
        drawn_latents: draw latents from the autoencoder's posterior, as the paper does; else take its mean.
        decoded: train through the autoencoder; else pixels are folded into latents and back directly, in half of the
            time, and so they are with the weights that come out (see `SDFSMISPipeline`, `folds`).
        precision: `no` (float32) or `bf16`.
        checkpointing: recompute activations for the gradients: less memory, more time.
        save_every, validate_every, picture_every: steps between checkpoints, validations, pictures; 0: never.
        write_every: minutes after which the pipeline is written though the run goes on; 0: it is written at the end.
        half: write the finished pipeline in float16.
        workers: processes that make episodes; with `on_device` they choose them, on Linux.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cases: str
    output: str
    start: str = ""
    network: Size = Size()
    seed: NonNegativeInt = 0
    mix: dict[Kind, NonNegativeFloat] = {"propagate": 0.6, "independent": 0.28, "cross": 0.12}
    synthetic_share: NonNegativeFloat = 0.25
    synthetic_count: NonNegativeInt = 40
    label_maps: str = ""
    group_weights: dict[str, NonNegativeFloat] = {}
    without_hints: NonNegativeFloat = 0.0
    on_device: bool = False
    label_share: NonNegativeFloat = 0.45
    rollout: NonNegativeFloat = 0.5
    swapped: NonNegativeFloat = 0.5
    known: NonNegativeFloat = 0.4
    ahead: NonNegativeFloat = 0.0
    late: NonNegativeFloat = 0.3
    across: Literal["labels", "registration"] = "labels"
    window: Literal["robust", "minmax"] = "robust"
    supervoxels: Literal["slic", "felzenszwalb", "labels"] = "slic"
    supervoxel_size: PositiveInt = 5000
    shippable: bool = True
    held_out: tuple[str, ...] = ()
    autoencoder_steps: NonNegativeInt = 0
    autoencoder_rate: NonNegativeFloat = 2e-3
    denoising_steps: NonNegativeInt = 0
    denoising_rate: NonNegativeFloat = 8e-4
    steps: NonNegativeInt = 4000
    minutes: NonNegativeFloat = 0.0
    batch: PositiveInt = 8
    accumulate: PositiveInt = 1
    rate: NonNegativeFloat = 8e-4
    translator_rate: NonNegativeFloat = 1.0
    schedule: Literal["cosine", "polynomial"] = "cosine"
    warmup: NonNegativeInt = 100
    decay: NonNegativeFloat = 0.01
    clip: NonNegativeFloat = 1.0
    average: NonNegativeFloat = 0.998
    learned: tuple[Part, ...] = ("unet", "image_encoder", "translator")
    without: tuple[Ablation, ...] = ()
    losses: dict[Loss, NonNegativeFloat] = {"entropy": 1.0, "dice": 1.0, "latent": 0.1}
    drawn_latents: bool = False
    decoded: bool = True
    precision: Literal["no", "bf16"] = "no"
    checkpointing: bool = False
    save_every: PositiveInt = 100
    validate_every: NonNegativeInt = 0
    picture_every: NonNegativeInt = 0
    write_every: NonNegativeFloat = 0.0
    half: bool = True
    workers: NonNegativeInt = 1

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingConfig:
        if self.start and self.network != Size():
            raise ValueError("network tells the size of new networks; with start they are those of that folder")
        for name, shares in (("mix", self.mix), ("losses", self.losses)):
            if not any(shares.values()):
                raise ValueError(f"{name} has nothing above 0")
        if self.ahead and not self.start and not self.network.ahead:
            raise ValueError("ahead shows slices to an input that new networks lack; set ahead of network to true")
        if self.on_device and self.mix.get("paper"):
            raise ValueError("on_device makes no paper episodes; leave paper out of the mix, or set on_device to false")
        if not self.cases and not self.synthetic_count and not self.label_maps:
            raise ValueError(
                "there is nothing to draw episodes from: name cases or label_maps, or a synthetic_count above 0"
            )
        if not self.learned:
            raise ValueError("learned names no part; unet, image_encoder, translator and decoder are accepted")
        if self.average >= 1:
            raise ValueError("average must be below 1")
        if self.held_out and self.validate_every and not self.cases:
            raise ValueError("held_out names cases, but there is no manifest of cases")
        return self

    @classmethod
    def read(cls, path: Path, **changes: Any) -> TrainingConfig:
        """The configuration in a JSON file, with `changes`, such as `cases` or `output`, in place of its values.

        Args:
            path: a file, or the name of one that comes with the package, such as `built_in`, with or without `.json`.

        Raises:
            InputError: for a file that cannot be read, and for unknown or missing keys and wrong values.
        """
        if not path.exists() and path.name == str(path):
            path = CONFIGURATIONS.get(path.name.removesuffix(".json"), path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"The configuration {path} cannot be read ({error}); give a JSON file, or one of ours: "
                f"{', '.join(CONFIGURATIONS)}."
            ) from error
        if not isinstance(content, dict):
            raise InputError(f"The configuration {path} must be a JSON object; {content!r:.60} was given.")
        try:
            return cls(**(content | changes))
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:  # of all together
                raise InputError(f"{path}: {first['msg'].removeprefix('Value error, ')}.") from error
            place = ".".join(str(part) for part in first["loc"])
            known = f"; known are {', '.join(cls.model_fields)}" if first["type"] == "extra_forbidden" else ""
            raise InputError(f"{path}, {place}: {first['msg']}, {first['input']!r:.60} was given{known}.") from error
