"""SD-FSMIS (arXiv 2604.03134) as a diffusers pipeline: support images and masks in, query masks out, in one step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import BaseOutput
from transformers import Dinov2Model

from SDFSMISLib.model.cpu import align, fold_upsampling
from SDFSMISLib.model.folding import folded, unfolded
from SDFSMISLib.model.likeness import likeness, likeness_table
from SDFSMISLib.model.sqi import query_probabilities, query_prototypes, support_prototypes
from SDFSMISLib.model.translator import VisualToTextualTranslator, pooled_feature
from SDFSMISLib.model.unet import Hints, SupportBank, SupportQueryUNet

LARGE_IMAGE = (
    1 << 22
)  # values in a feature map from which the autoencoder takes images one by one: as fast, less memory


@dataclass
class SDFSMISOutput(BaseOutput):
    """Output of `SDFSMISPipeline`.

    Args:
        probabilities (`torch.Tensor`): float32 (Q, H, W) in [0, 1]: the decoded mask, the mean over its three channels.
        maps (`torch.Tensor`): (Q, 3, H, W) in [0, 1], before that mean.
    """

    probabilities: torch.Tensor
    maps: torch.Tensor


class SDFSMISPipeline(DiffusionPipeline):
    """Few-shot segmentation with Stable Diffusion (SD-FSMIS, arXiv 2604.03134).

    Support images x_s and masks m_s, and query images x_q, are encoded to latents z. The U-Net f predicts the mask
    latent of a query in one step, without noise:

        z_m = -f([z_q, p_q], bank, E),   probability = decode(z_m)

    p_q is the query's prototype spread over space (query enhancement), the bank holds keys and values of
    f([z_s, z_ms]) (support information injection), E is the condition token of the translator (VTCT).

    Call the pipeline with supports and queries; or, for many queries, `encode_support` once and `segment` as often as
    needed. The bank in between is a value: the pipeline keeps no state. The model inherits from `DiffusionPipeline`:
    `from_pretrained`, `save_pretrained`, `to`.

    Args:
        vae (`AutoencoderKL`): autoencoder of images and masks.
        unet (`SupportQueryUNet`): the U-Net with support pass and bank.
        image_encoder (`Dinov2Model`): encoder of the support images, with a position table for the translator's crop.
        translator (`VisualToTextualTranslator`): from image features to the condition token.
        resolution (`int`, defaults to 256): side, in pixels, of the square images that the weights were trained on.
        official_details (`bool`, defaults to `False`): `True` for weights that the official code trained, see
            `VisualToTextualTranslator.patch_weights`.
        without (`Sequence[str]`, defaults to `()`): parts of the method to leave out, for ablations: ``translator``
            (the condition token is zero), ``prototype`` (the query's prototype is zero), ``bank`` (queries do not
            attend to the support).
        folds (`bool`, defaults to `False`): images and masks are folded into latents and back (see
            `SDFSMISLib.model.folding`), in place of the autoencoder's work: for weights of our own kind that were
            trained so. It takes about half the time on a CPU.

    Raises:
        ValueError: if `folds` is asked for, and the latent has not as many channels as its square has pixels.

    Example:
        >>> from SDFSMISLib.model.built_in import Size, new_built_in
        >>> pipe = new_built_in(size=Size(resolution=32, channels=(8, 16)))  # random weights
        >>> support_images, query_images = torch.zeros(1, 3, 32, 32), torch.zeros(2, 3, 32, 32)
        >>> support_masks = torch.zeros(1, 32, 32)
        >>> support_masks[:, 8:24, 8:24] = 1
        >>> output = pipe(support_images, support_masks, query_images)
        >>> tuple(output.probabilities.shape), tuple(output.maps.shape)
        ((2, 32, 32), (2, 3, 32, 32))
        >>> bank = pipe.encode_support(support_images[None], support_masks[None])
        >>> tuple(pipe.segment(pipe.encode_images(query_images), bank).shape)
        (2, 3, 32, 32)
    """

    model_cpu_offload_seq = "image_encoder->translator->vae->unet"

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: SupportQueryUNet,
        image_encoder: Dinov2Model,
        translator: VisualToTextualTranslator,
        resolution: int = 256,
        official_details: bool = False,
        without: Sequence[str] = (),
        folds: bool = False,
    ) -> None:
        super().__init__()
        for part in (vae, unet, image_encoder, translator):
            align(part)
        self.register_modules(vae=vae, unet=unet, image_encoder=image_encoder, translator=translator)
        self.register_to_config(
            resolution=resolution, official_details=official_details, without=list(without), folds=folds
        )
        if folds and not self.has_folding_autoencoder:
            raise ValueError(
                f"folds was asked for, but the latent has {vae.config.latent_channels} channels for "
                f"{self.latent_factor} x {self.latent_factor} pixels; leave it out."
            )

    @property
    def device(self) -> torch.device:
        """Where the networks are, all of them. diffusers' own way to tell looks through every module of every network,
        which takes a third of the time of a small batch."""
        return next(self.unet.parameters()).device

    @property
    def latent_factor(self) -> int:
        """Pixels per latent position along each side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def has_folding_autoencoder(self) -> bool:
        """Whether a latent position has as many channels as pixels, so that pixels can be folded into channels (see
        `SDFSMISLib.model.folding.fold_encoder`); true of the built-in size."""
        return self.vae.config.latent_channels == self.latent_factor**2

    @property
    def takes_neighbours(self) -> bool:
        """Whether the U-Net has an input for a query's finished neighbour (`SupportQueryUNet`, `neighbour`)."""
        return bool(self.unet.config.neighbour)

    @property
    def takes_known(self) -> bool:
        """Whether the U-Net has an input for what is known of a query (`SupportQueryUNet`, `known`)."""
        return bool(self.unet.config.known)

    @property
    def takes_ahead(self) -> bool:
        """Whether the U-Net has an input for the slices ahead of a query (`SupportQueryUNet`, `ahead`)."""
        return bool(self.unet.config.ahead)

    @property
    def sees_contrast(self) -> bool:
        """Whether the weights were trained on regions with spread contrast (`network_images.Contrast`), as those
        of the built-in kind were and the paper's were not."""
        return self.takes_neighbours

    def for_inference(self) -> SDFSMISPipeline:
        """This pipeline, set up for speed on its device, with the same results. Call it after `to`, never to train."""
        for network in (self.vae, self.unet, self.image_encoder, self.translator):
            network.eval()
        if self.device.type == "cpu":
            # No channels_last: it would save 3 % of the autoencoder's time, for ten times larger rounding errors of its
            # convolutions; the U-Net, whose deep layers are small images with large kernels, takes a seventh longer.
            fold_upsampling(self.vae.decoder)
            if self.vae.config.block_out_channels[0] * self.config.resolution**2 >= LARGE_IMAGE:
                self.vae.enable_slicing()
        elif self.device.type == "cuda" and _precision(self.vae) != torch.float32:  # for tensor cores; not measured
            self.vae.to(memory_format=torch.channels_last)
            self.unet.to(memory_format=torch.channels_last)
        return self

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save a pipeline folder, as in diffusers.

        Weights get the file permissions of the other files (safetensors makes them readable by the owner only), and the
        local path that a component was loaded from is not written.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        for settings in Path(save_directory).rglob("config.json"):
            content = json.loads(settings.read_text(encoding="utf-8"))
            if content.pop("_name_or_path", None) is not None:
                settings.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for weights in Path(save_directory).rglob("*.safetensors"):
            shutil.copymode(Path(save_directory) / "model_index.json", weights)

    @torch.no_grad()
    def __call__(
        self,
        support_images: torch.Tensor,
        support_masks: torch.Tensor,
        query_images: torch.Tensor,
        batch_size: int = 8,
    ) -> SDFSMISOutput:
        """Segment query images from support images with masks.

        Args:
            support_images (`torch.Tensor`): (S, 3, H, W) in [-1, 1], S shots; grey images with three equal channels.
            support_masks (`torch.Tensor`): (S, H, W), 0 or 1.
            query_images (`torch.Tensor`): (Q, 3, H, W) in [-1, 1].
            batch_size (`int`, defaults to 8): query images per pass; bounds the memory.

        Returns:
            `SDFSMISOutput`: probabilities (Q, H, W) and maps (Q, 3, H, W).

        Raises:
            ValueError: if the shapes do not fit each other, or H or W is no multiple of `latent_factor`.
        """
        self.check_inputs(support_images, support_masks, query_images)
        bank = self.encode_support(support_images[None], support_masks[None])
        maps = [
            self.segment(self.encode_images(part), bank, self.hints(part, bank))
            for part in query_images.split(batch_size)
        ]
        joined = torch.cat(maps)
        return SDFSMISOutput(probabilities=joined.mean(1), maps=joined)

    # -- images and masks to latents and back

    def encode_images(self, images: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Scaled latents (N, c, h, w) of images.

        Args:
            images (`torch.Tensor`): (N, 3, H, W) in [-1, 1].
            noise (`torch.Tensor`, *optional*): standard normal (N, c, h, w), for a sample of the posterior, as in the
                paper's training; `None` means its mode, as always in inference.
        """
        if self.config.folds:
            grey = images[:, 0].to(self.device, _precision(self.unet))
            return folded(grey, self.latent_factor) * self.vae.config.scaling_factor
        images = images.to(self.device, _precision(self.vae))
        posterior = self.vae.encode(images).latent_dist
        latents = posterior.mode() if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
        return latents * self.vae.config.scaling_factor

    def encode_masks(self, masks: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Scaled latents (N, c, h, w) of masks (N, H, W), 0 to 1, as images of three equal channels in [-1, 1]."""
        return self.encode_images((2 * masks[:, None].float() - 1).expand(-1, 3, -1, -1), noise)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps (N, 3, H, W) in [0, 1] of scaled mask latents (N, c, h, w)."""
        return (self.decode_raw(latents).clamp(-1, 1) + 1) / 2

    def decode_raw(self, latents: torch.Tensor) -> torch.Tensor:
        """The decoder's output before clipping, float32 (N, 3, H, W) around [-1, 1], for a loss on the decoded mask."""
        latents = latents / self.vae.config.scaling_factor
        if self.config.folds:
            return unfolded(latents)[:, None].float().expand(-1, 3, -1, -1)
        return self.vae.decode(latents.to(_precision(self.vae))).sample.float()

    # -- supports

    def condition_token(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The condition token E of each support set (VTCT).

        Args:
            images (`torch.Tensor`): (B, S, 3, H, W) in [-1, 1].
            masks (`torch.Tensor`): (B, S, H, W), 0 or 1.

        Returns:
            (B, 1, D), D the width of the U-Net's cross-attention.
        """
        tasks, shots = masks.shape[:2]
        if "translator" in self.config.without:
            shape = (tasks, 1, self.translator.config.output_dim)
            return torch.zeros(shape, device=self.device, dtype=_precision(self.unet))
        levels = self.translator.encoder_bytes(images.to(self.device).flatten(0, 1))
        pixels = self.translator.encoder_pixels(levels).to(_precision(self.image_encoder))
        tokens = self.image_encoder(pixels).last_hidden_state
        grid = round((tokens.shape[1] - 1) ** 0.5)
        weights = self.translator.patch_weights(masks.to(self.device).flatten(0, 1), grid, self.config.official_details)
        feature = pooled_feature(tokens, weights).unflatten(0, (tasks, shots)).mean(1)
        return self.translator(feature.to(_precision(self.translator)))

    def encode_support(
        self, images: torch.Tensor, masks: torch.Tensor, conditions: dict[str, torch.Tensor] | None = None
    ) -> SupportBank:
        """The bank of support sets.

        Args:
            images (`torch.Tensor`): (B, S, 3, H, W) in [-1, 1]: B support sets of S shots.
            masks (`torch.Tensor`): (B, S, H, W), 0 to 1.
            conditions (`dict[str, torch.Tensor]`, *optional*): output of the cross-attentions (1 or B rows), instead of
                that of these supports' own condition token.
        """
        if conditions is None:
            conditions = self.unet.condition_constants(self.condition_token(images, masks))
        flat = masks.to(self.device).flatten(0, 1)
        latents, mask_latents = self.encode_images(images.flatten(0, 1)), self.encode_masks(flat)
        return self.support_bank(images, masks, latents, mask_latents, conditions)

    def support_bank(
        self,
        images: torch.Tensor,
        masks: torch.Tensor,
        latents: torch.Tensor,
        mask_latents: torch.Tensor,
        conditions: dict[str, torch.Tensor],
    ) -> SupportBank:
        """The bank of support sets whose latents are known.

        Args:
            images, masks, conditions: see `encode_support`.
            latents, mask_latents (`torch.Tensor`): (B * S, c, h, w).
        """
        shots = masks.shape[1]
        masks = masks.to(self.device)
        keys, values, _ = self.unet.encode_support(torch.cat([latents, mask_latents], dim=1), conditions, shots)
        if "bank" in self.config.without:
            keys, values = ({name: x[:, :0] for name, x in found.items()} for found in (keys, values))
        pair = support_prototypes(latents, masks.flatten(0, 1))
        foreground, background = (x.unflatten(0, (-1, shots)) for x in pair)
        table = likeness_table(images[:, :, 0].to(self.device), masks) if self.unet.config.likeness else None
        return SupportBank(keys, values, conditions, foreground, background, table)

    # -- queries

    def hints(
        self,
        images: torch.Tensor,
        bank: SupportBank,
        neighbours: torch.Tensor | None = None,
        neighbour_masks: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
        ahead: torch.Tensor | None = None,
        is_there: torch.Tensor | None = None,
    ) -> Hints:
        """Optional inputs of the U-Net for queries; empty for networks without such inputs.

        Args:
            images (`torch.Tensor`): the queries, (Q, 3, H, W) in [-1, 1].
            bank (`SupportBank`): of one row, or of one for each query.
            neighbours (`torch.Tensor`, *optional*): (Q, 3, H, W) in [-1, 1], finished neighbouring slices, registered
                onto the queries.
            neighbour_masks (`torch.Tensor`, *optional*): (Q, H, W), 0 to 1, their masks, warped likewise.
            known (`torch.Tensor`, *optional*): (Q, H, W), what is known of the queries: 1 inside of the structure, -1
                outside, 0 unknown.
            ahead (`torch.Tensor`, *optional*): (Q, A, H, W) in [-1, 1], the slices that come next behind the queries,
                seen as they are, without registration.
            is_there (`torch.Tensor`, *optional*): bool (Q, A), which of these there are; the others count for nothing.
        """
        neighbour, likely, told, next_slices = None, None, None, None
        if self.takes_neighbours and neighbours is not None and neighbour_masks is not None:
            masks = self.encode_masks(neighbour_masks.to(self.device))
            neighbour = torch.cat([self.encode_images(neighbours), masks], dim=1)
        if bank.likeness is not None:
            likely = self.encode_masks(likeness(images[:, 0].to(self.device), bank.likeness))
        if self.takes_known and known is not None:
            told = self.encode_masks((known.to(self.device) + 1) / 2)
        if self.takes_ahead and ahead is not None and is_there is not None:
            next_slices = self._encode_ahead(ahead.to(self.device), is_there.to(self.device))
        return Hints(neighbour, likely, told, next_slices)

    def _encode_ahead(self, ahead: torch.Tensor, is_there: torch.Tensor) -> torch.Tensor:
        """See `Hints.ahead`. Where a latent position has a channel for each pixel, the pixels themselves are its
        latent, which saves two passes of the encoder a query. Else, slices that are not there are encoded too: how many
        images there are would change the last bits of the others."""
        if self.has_folding_autoencoder:
            latents = folded(ahead.flatten(0, 1), self.latent_factor).unflatten(0, ahead.shape[:2])
            latents = latents.to(_precision(self.unet)) * self.vae.config.scaling_factor
        else:
            grey = ahead.flatten(0, 1)[:, None]
            latents = self.encode_images(grey.expand(-1, 3, -1, -1)).unflatten(0, ahead.shape[:2])
        there = is_there[..., None, None, None].to(latents)
        return torch.cat([latents * there, there.expand_as(latents[:, :, :1])], dim=2).flatten(1, 2)

    def predict(self, latents: torch.Tensor, bank: SupportBank, hints: Hints | None = None) -> torch.Tensor:
        """Scaled mask latents (Q, c, h, w) of query latents.

        Args:
            latents (`torch.Tensor`): (Q, c, h, w).
            bank (`SupportBank`): of one row, or of one for each query.
            hints (`Hints`, *optional*): see `hints`; `None` as in the paper.
        """
        probabilities = query_probabilities(latents, bank.foreground, bank.background)
        foreground, _ = query_prototypes(latents, probabilities)
        spread = foreground[..., None, None].expand_as(latents)
        if "prototype" in self.config.without:
            spread = torch.zeros_like(latents)
        return -self.unet.predict(torch.cat([latents, spread], dim=1), bank, hints)

    def segment(self, latents: torch.Tensor, bank: SupportBank, hints: Hints | None = None) -> torch.Tensor:
        """Maps (Q, 3, H, W) in [0, 1] of query latents; see `predict`."""
        return self.decode(self.predict(latents, bank, hints))

    def check_inputs(
        self, support_images: torch.Tensor, support_masks: torch.Tensor, query_images: torch.Tensor
    ) -> None:
        """Raise `ValueError` for shapes that `__call__` does not accept."""
        for name, x in (("support_images", support_images), ("query_images", query_images)):
            if x.ndim != 4 or x.shape[1] != 3 or x.shape[0] == 0:
                raise ValueError(f"{name} has shape {tuple(x.shape)}; expected (number, 3, height, width)")
        if support_masks.shape != support_images.shape[:1] + support_images.shape[2:]:
            raise ValueError(
                f"support_masks has shape {tuple(support_masks.shape)}; expected one mask (height, width) for "
                f"each of the support images {tuple(support_images.shape)}"
            )
        factor = self.latent_factor
        for name, x in (("support_images", support_images), ("query_images", query_images)):
            if any(side % factor for side in x.shape[-2:]):
                raise ValueError(f"{name} is {x.shape[-2]} x {x.shape[-1]}; both sides must be multiples of {factor}")


def _precision(network: torch.nn.Module) -> torch.dtype:
    """The type of a network's weights, all of one; its own `dtype` looks through all modules, as for `device`."""
    return next(network.parameters()).dtype
