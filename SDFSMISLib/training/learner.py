"""Losses: of denoising, which teaches the U-Net images before masks, and of a batch of episodes.

Denoising is v-prediction (Salimans and Ho, ICLR 2022) of image latents, which Stable Diffusion's U-Net has learned
already; it needs no labels.

The paper's episode loss is the mean squared error of the mask latent. One step without noise gives the mask, so the
loss can also be taken on the decoded mask (Martin Garcia et al., "Fine-tuning image-conditional diffusion models is
easier than you think", WACV 2025): cross-entropy and soft Dice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import nn

from SDFSMISLib.inference.network_images import as_rgb
from SDFSMISLib.inference.registration import warp
from SDFSMISLib.model.likeness import likeness_table
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.unet import Hints, SupportBank
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.volumes import EpisodeBatch


class Denoiser(nn.Module):
    """The U-Net of a pipeline as a module whose output is the loss of denoising."""

    def __init__(self, pipeline: SDFSMISPipeline) -> None:
        super().__init__()
        self.pipeline, self.unet = pipeline, pipeline.unet
        self.schedule = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The loss of slices (N, R, R) in [-1, 1]; noise and timesteps are drawn here.

        The condition is that of an all-zero token: there is no mask yet that could give one.
        """
        with torch.no_grad():
            latents = self.pipeline.encode_images(as_rgb(images.to(self.pipeline.device))).float()
            noise = torch.randn(latents.shape, device=latents.device)
            steps = self.schedule.config.num_train_timesteps
            timesteps = torch.randint(steps, latents.shape[:1], device=latents.device)
            noisy = self.schedule.add_noise(latents, noise, timesteps)
            wanted = self.schedule.get_velocity(latents, noise, timesteps)
        token = torch.zeros(1, 1, self.unet.config.cross_attention_dim, device=latents.device)
        found = self.unet.denoise(noisy.to(self.unet.dtype), timesteps, self.unet.condition_constants(token))
        return F.mse_loss(found.float(), wanted)


def copy_input_weights(pipeline: SDFSMISPipeline) -> None:
    """The support pass starts with what the input convolution has learned of images, as the paper starts with Stable
    Diffusion's.
    """
    pipeline.unet.conv_in_ref.load_state_dict(pipeline.unet.conv_in.state_dict())


MIN_FOUND_PIXELS = 6  # a track would have ended with fewer
LOGIT_SCALE = 4.0  # decoded masks lie around -1 and 1; as logits of the cross-entropy they are stretched by this
MIN_AREA = 30.0  # pixels
DICE_SMOOTHING = 10.0  # pixels; without it an empty answer has no Dice


@dataclass(frozen=True)
class EpisodeLoss:
    """The loss of a batch: ``loss`` (scalar), the ``parts`` for the log, the predicted mask latents (B, c, h, w)."""

    loss: torch.Tensor
    parts: dict[str, torch.Tensor]
    predicted: torch.Tensor


class EpisodeLearner(nn.Module):
    """The networks of a pipeline as one module whose output is a loss, so that it can be distributed over devices.

    Args:
        pipeline: its networks are trained in place.
        config: ``losses``, the weight of each part, and ``drawn_latents``.

    >>> from SDFSMISLib.model.built_in import Size, new_built_in
    >>> config = TrainingConfig(cases="", output="run", losses={"latent": 1.0})
    >>> learner = EpisodeLearner(new_built_in(size=Size(resolution=32, channels=(16, 16))), config)
    >>> image, mask = torch.zeros(1, 32, 32), torch.ones(1, 32, 32)
    >>> learned = learner(EpisodeBatch(image[None], mask[None], image, mask, painted=1))
    >>> learned.predicted.shape, sorted(learned.parts)
    (torch.Size([1, 16, 8, 8]), ['latent', 'loss'])
    """

    def __init__(self, pipeline: SDFSMISPipeline, config: TrainingConfig) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.networks = nn.ModuleDict(pipeline.components)
        self.weights = config.losses
        self.drawn, self.without_hints = config.drawn_latents, config.without_hints

    def forward(self, batch: EpisodeBatch, noises: tuple[torch.Tensor, ...] | None = None) -> EpisodeLoss:
        """The loss of a batch.

        Args:
            noises: standard normal, for draws from the posterior: of the support images and masks (B*S, c, h, w), then
                of the query images and masks (B, c, h, w). None: drawn here, where the configuration wants draws.
        """
        pipeline, device = self.pipeline, self.pipeline.device
        images, masks = as_rgb(batch.support_images.to(device)), batch.support_masks.to(device)
        queries, target = as_rgb(batch.query_images.to(device)), batch.query_masks.to(device)
        token = pipeline.condition_token(images[:, : batch.painted], masks[:, : batch.painted])
        conditions = pipeline.unet.condition_constants(token)
        neighbour_masks = self._soften(masks[:, -1])
        if batch.before is not None:
            masks, neighbour_masks = self._with_predicted_neighbour(batch, images, masks, neighbour_masks, conditions)
        flat = masks.flatten(0, 1)
        with torch.no_grad():
            drawn = noises or self._noises(len(flat), len(target))
            latents = pipeline.encode_images(images.flatten(0, 1), drawn[0])
            mask_latents = pipeline.encode_masks(flat, drawn[1])
            query_latents, answer = pipeline.encode_images(queries, drawn[2]), pipeline.encode_masks(target, drawn[3])
        bank = pipeline.support_bank(images, masks, latents, mask_latents, conditions)
        bank = replace(bank, likeness=self._likeness_table(batch, images))
        if torch.rand(()) < self.without_hints:
            hints = Hints()
        else:
            neighbour = images[:, -1, 0], neighbour_masks, batch.displacements
            hints = self._hints(queries, bank, *neighbour, batch.known, batch.ahead, batch.is_there)
        predicted = pipeline.predict(query_latents, bank, hints)
        parts = {"latent": F.mse_loss(predicted.float(), answer.float())}
        if self.weights.get("entropy") or self.weights.get("dice"):
            logits = LOGIT_SCALE * pipeline.decode_raw(predicted).mean(1)
            areas = torch.maximum(masks.sum((2, 3)).amax(1), target.sum((1, 2)))
            parts |= _task_losses(logits, target, areas) | {"overlap": _mean_dice(logits > 0, target > 0)}
        if self.weights.get("autoencoder"):
            half = len(target) // 2  # of the episodes the image comes back, of the others the mask
            shown = torch.cat([queries[:half], as_rgb(2 * target[half:] - 1)])
            decoded = pipeline.decode_raw(torch.cat([query_latents[:half], answer[half:]]))
            parts["autoencoder"] = (decoded - shown).abs().mean()
        loss = torch.stack([weight * parts[name] for name, weight in self.weights.items() if weight]).sum()
        numbers = {name: value.detach() for name, value in {"loss": loss, **parts}.items()}
        return EpisodeLoss(loss, numbers, predicted.detach())

    def _noises(self, supports: int, queries: int) -> tuple[torch.Tensor | None, ...]:
        if not self.drawn:
            return (None,) * 4
        config, factor = self.pipeline.vae.config, self.pipeline.latent_factor
        side = self.pipeline.config.resolution // factor
        counts = (supports, supports, queries, queries)
        return tuple(torch.randn(n, config.latent_channels, side, side, device=self.pipeline.device) for n in counts)

    def _likeness_table(self, batch: EpisodeBatch, images: torch.Tensor) -> torch.Tensor | None:
        """Likeness to the painted slices, not to finished neighbours, which may be wrong; across scans to the warped
        mask, as in `inference.cross_scan`."""
        if not self.pipeline.unet.config.likeness:
            return None
        if batch.warped:
            return likeness_table(images[:, -1:, 0], batch.support_masks[:, -1:].to(images.device))
        painted = batch.support_masks[:, : batch.painted].to(images.device)
        return likeness_table(images[:, : batch.painted, 0], painted)

    @torch.no_grad()
    def _hints(
        self,
        queries: torch.Tensor,
        bank: SupportBank,
        images: torch.Tensor,
        masks: torch.Tensor,
        displacements: torch.Tensor | None,
        known: torch.Tensor | None = None,
        ahead: torch.Tensor | None = None,
        is_there: torch.Tensor | None = None,
    ) -> Hints:
        """Hints for queries (B, 3, R, R) with finished neighbours (B, R, R), if they have some."""
        if displacements is None:
            return self.pipeline.hints(queries, bank, known=known)
        moved = as_rgb(warp(images, displacements)), warp(masks, displacements)
        return self.pipeline.hints(queries, bank, *moved, known, ahead, is_there)

    @torch.no_grad()
    def _with_predicted_neighbour(
        self,
        batch: EpisodeBatch,
        images: torch.Tensor,
        masks: torch.Tensor,
        neighbour_masks: torch.Tensor,
        conditions: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The supports' masks (B, S, R, R) and the neighbours' soft masks (B, R, R), the last ones predicted by the
        network from the slices `before`: so training meets the errors that a track hands on."""
        before, pipeline, device = batch.before, self.pipeline, images.device
        assert before is not None
        earlier, earlier_mask = before.images.to(device), before.masks.to(device)
        shown = torch.cat([images[:, : batch.painted], as_rgb(earlier)[:, None]], dim=1)
        painted = torch.cat([masks[:, : batch.painted], earlier_mask[:, None]], dim=1)
        bank = pipeline.encode_support(shown, painted, conditions)
        bank = replace(bank, likeness=self._likeness_table(batch, images))
        neighbour = earlier, self._soften(earlier_mask), before.displacements
        hints = self._hints(images[:, -1], bank, *neighbour, None, before.ahead, before.is_there)
        predicted = pipeline.predict(pipeline.encode_images(images[:, -1]), bank, hints)
        probability = pipeline.decode(predicted).mean(1)
        found = (probability > 0.5).float()
        use = (before.wanted.to(device) & (found.sum((1, 2)) >= MIN_FOUND_PIXELS))[:, None, None]
        last = torch.where(use, found, masks[:, -1])
        return torch.cat([masks[:, :-1], last[:, None]], dim=1), torch.where(use, probability, neighbour_masks)

    @staticmethod
    def _soften(masks: torch.Tensor) -> torch.Tensor:
        """Masks (B, R, R) with the soft borders of a prediction, in half of the batches."""
        return masks if torch.rand(()) < 0.5 else F.avg_pool2d(masks, 3, 1, 1)


def own_settings(pipeline: SDFSMISPipeline) -> dict[str, Any]:
    """The settings of a pipeline beside its networks, to make another pipeline of the same kind."""
    return {name: pipeline.config[name] for name in ("resolution", "official_details", "without", "folds")}


def _task_losses(logits: torch.Tensor, target: torch.Tensor, areas: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cross-entropy, and one minus the soft Dice of each episode; of logits and targets (B, R, R).

    If the query lacks the structure, soft Dice hardly changes with the size of a wrong answer, and tracks would not
    learn to end. The loss is then 2 S / (S + A) instead, S the answer's size and A the structure's area (B,) in
    pixels, the largest that is shown: as much for an answer of that size as for a structure that was missed.
    """
    probability = logits.sigmoid()
    size = probability.sum((1, 2))
    overlap = (probability * target).sum((1, 2))
    dice = (2 * overlap + DICE_SMOOTHING) / (size + target.sum((1, 2)) + DICE_SMOOTHING)
    wrong = 2 * size / (size + areas.clamp(min=MIN_AREA))
    missed = torch.where(target.flatten(1).any(1), 1 - dice, wrong)
    return {"entropy": F.binary_cross_entropy_with_logits(logits, target), "dice": missed.mean()}


def _mean_dice(found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean Dice of the episodes whose query holds the target; 1 where none does."""
    present = target.flatten(1).any(1)
    both = 2 * (found & target).flatten(1).sum(1)
    dice = both / (found.flatten(1).sum(1) + target.flatten(1).sum(1)).clamp(min=1)
    number = present.sum()
    return torch.where(number > 0, (dice * present).sum() / number.clamp(min=1), 1.0)
