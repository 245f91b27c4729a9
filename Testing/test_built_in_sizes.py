"""Sizes of our own networks: pixels folded by either factor, saved and loaded as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from SDFSMISLib.errors import InputError
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.model.folding import folded, unfolded
from SDFSMISLib.model.loading import load_pipeline
from test_hints import blobs

OTHER = Size(resolution=64, factor=8, channels=(16, 32), layers=2, neighbour=False)


def test_the_default_size_is_that_of_the_weights_in_the_package() -> None:
    shipped, fresh = load_pipeline("built-in", "cpu"), new_built_in()
    assert shipped.config.resolution == fresh.config.resolution
    for name, network in shipped.components.items():
        ours = getattr(fresh, name).state_dict()
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        assert shapes.items() <= {key: value.shape for key, value in ours.items()}.items(), name


@pytest.mark.parametrize("factor", [4, 8])
def test_pixels_are_folded_and_unfolded_exactly_and_so_does_the_encoder(factor: int) -> None:
    images = torch.stack([blobs(7), blobs(8)])[:, :96, :64]
    latents = folded(images, factor)
    assert latents.shape == (2, factor**2, 96 // factor, 64 // factor)
    assert torch.equal(unfolded(latents), images)
    pipe = new_built_in(0, Size(factor=factor))
    with torch.no_grad():
        found = pipe.encode_images(images[:, None].expand(-1, 3, -1, -1))
    assert torch.corrcoef(torch.stack([found.flatten(), latents.flatten()]))[0, 1] > 0.998


def test_another_size_comes_back_from_its_folder_as_it_was(tmp_path: Path) -> None:
    made = new_built_in(3, OTHER)
    made.save_pretrained(tmp_path)
    back = load_pipeline(tmp_path, "cpu")
    assert (back.config.resolution, back.latent_factor, back.unet.config.layers_per_block) == (64, 8, 2)
    assert (back.takes_neighbours, back.unet.config.likeness) == (False, True)
    image, mask = blobs(1, 64)[None, None].expand(1, 3, -1, -1), (blobs(2, 64) > 0).float()[None]
    assert torch.equal(made(image, mask, image).maps, back(image, mask, image).maps)


def test_a_size_that_cannot_be_is_refused() -> None:
    for wrong in ({"factor": 16}, {"resolution": 90}, {"channels": (48,)}, {"layers": 0}):
        with pytest.raises(InputError):
            Size(**wrong)  # type: ignore[arg-type]
