"""What a network is told of a query beside the supports: registered neighbours, likeness, and a region's contrast."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from SDFSMISLib import Segmenter, SupportSet, Volume
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.inference.network_images import Contrast
from SDFSMISLib.inference.registration import displacement, warp
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.model.folding import folded, unfolded
from SDFSMISLib.model.likeness import likeness, likeness_table
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.unet import NEIGHBOUR_MASK_WEIGHT, Hints
from SDFSMISLib.slices import propagation_stride, slices_ahead
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.trainer import starting_pipeline


def blobs(seed: int = 0, side: int = 96) -> torch.Tensor:
    """A smooth random image (side, side) in [-1, 1]."""
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, 12, 12)).astype(np.float32))
    return F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False)[0, 0].div(2).clamp(-1, 1)


def disc(row: float, column: float, radius: float, side: int = 96) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return ((rows - row) ** 2 + (columns - column) ** 2 < radius**2).float()


# -- registration


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -4), (2, 3)])
def test_a_mask_is_carried_along_with_what_has_moved(shift):
    image, mask = blobs(), disc(48, 48, 15)
    moved_image, moved_mask = (torch.roll(x, shift, (0, 1)) for x in (image, mask))
    found = warp(mask[None], displacement(image, moved_image)[None])[0] > 0.5
    both = float((found & (moved_mask > 0.5)).sum())
    assert 2 * both / float(found.sum() + moved_mask.sum()) > 0.93


def test_a_slice_lies_on_itself():
    image = blobs(1)
    assert displacement(image, image).abs().max() < 0.1
    assert torch.allclose(warp(image[None], torch.zeros(1, 96, 96, 2))[0], image, atol=1e-5)


def test_a_slice_without_structure_is_no_error():
    flat = torch.full((96, 96), -1.0)
    assert torch.isfinite(displacement(flat, blobs())).all()


# -- likeness


def test_what_looks_as_painted_is_alike_and_what_looks_as_its_surroundings_is_not():
    mask = disc(40, 40, 20)
    image = mask - 0.5
    table = likeness_table(image[None, None], mask[None, None])
    elsewhere = disc(60, 60, 15)
    alike = likeness((elsewhere - 0.5)[None], table)[0]
    assert alike[60, 60] > 0.9 and alike[10, 10] < 0.1


def test_what_is_found_nowhere_in_the_painted_slice_is_not_alike():
    mask = disc(48, 48, 20)
    table = likeness_table((mask - 0.5)[None, None], mask[None, None])
    assert likeness(torch.full((1, 96, 96), 0.99), table).max() < 0.1


def test_each_query_may_have_a_table_of_its_own_or_all_the_same():
    mask, images = disc(48, 48, 20), torch.stack([blobs(2), blobs(3)])
    tables = likeness_table(images[:, None], mask[None, None].expand(2, 1, -1, -1))
    both = likeness(images, tables)
    assert torch.equal(both[1], likeness(images[1:], tables[1:])[0])
    assert torch.equal(likeness(images, tables[:1])[1], likeness(images[1:], tables[:1])[0])


def test_a_mask_with_nothing_painted_makes_nothing_alike():
    image = blobs(4)[None]
    table = likeness_table(image[:, None], torch.zeros(1, 1, 96, 96))
    assert likeness(image, table).max() < 1e-6


# -- contrast


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 1.0), st.floats(-0.9, 0.9))
def test_contrast_keeps_the_order_of_grey_levels_and_their_range(seed, spread, centre):
    image = (centre + spread * blobs(seed, 32)).clamp(-1, 1)
    levels = Contrast.of(image)(torch.linspace(-1, 1, 501))
    assert (levels.diff() >= 0).all() and levels.abs().max() <= 1


def test_soft_tissue_between_air_and_bone_gains_contrast():
    tissue = 0.02 * blobs(5) - 0.3
    tissue[:10], tissue[-3:] = -1.0, 1.0
    seen = Contrast.of(tissue)(tissue)
    assert seen[20:80].std() > 1.5 * tissue[20:80].std()


def test_an_empty_region_keeps_its_levels():
    assert Contrast.of(torch.full((96, 96), -1.0)).is_unchanged
    image = blobs(6)
    assert torch.allclose(Contrast.unchanged()(image), image, atol=1e-6)


# -- networks


def test_before_it_has_learned_a_network_adds_the_carried_mask_and_nothing_else_of_its_hints():
    pipe = new_built_in(1)
    images, masks = torch.rand(1, 1, 3, 96, 96) * 2 - 1, disc(48, 48, 20)[None, None]
    query = torch.rand(2, 3, 96, 96) * 2 - 1
    with torch.no_grad():
        bank = pipe.encode_support(images, masks)
        latents = pipe.encode_images(query)
        plain = pipe.predict(latents, bank)
        assert torch.equal(pipe.predict(latents, bank, pipe.hints(query, bank)), plain)
        warped_masks = masks[0].expand(2, -1, -1)
        hinted = pipe.predict(latents, bank, pipe.hints(query, bank, query, warped_masks))
        torch.testing.assert_close(hinted, plain + NEIGHBOUR_MASK_WEIGHT * pipe.encode_masks(warped_masks))


def test_a_network_without_inputs_for_hints_gets_none():
    pipe = new_built_in(1)
    pipe.unet.register_to_config(neighbour=False, likeness=False)
    query, mask = torch.rand(1, 3, 96, 96), disc(48, 48, 20)[None]
    with torch.no_grad():
        bank = pipe.encode_support(query[None], mask[None])
        assert pipe.hints(query, bank, query, mask) == Hints(None, None)


def test_folding_pixels_into_channels_is_undone_exactly_and_is_what_the_encoder_does():
    images = torch.stack([blobs(7), blobs(8)])
    assert torch.equal(unfolded(folded(images)), images)
    pipe = new_built_in(0)
    with torch.no_grad():
        latents = pipe.encode_images(images[:, None].expand(-1, 3, -1, -1))
    assert torch.corrcoef(torch.stack([latents.flatten(), folded(images).flatten()]))[0, 1] > 0.998


# -- what crossing planes tell, and the slices that come next


def a_block() -> tuple[Volume, Volume]:
    """A scan with a bright block in noise, and its labels."""
    mask = np.zeros((12, 24, 24), dtype=np.uint8)
    mask[1:10, 6:18, 6:18] = 1
    noise = np.random.default_rng(0).normal(0, 5, mask.shape)
    grid = Geometry(mask.shape, (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    return Volume((100 * mask + noise).astype(np.float32), grid), Volume(mask, grid)


@cache
def shows_ahead() -> SDFSMISPipeline:
    """The built-in networks with an input for the slices that come next, which has learnt nothing."""
    return starting_pipeline(TrainingConfig(cases="", output="", start="built-in", ahead=1.0))


def teach(pipeline: SDFSMISPipeline, spread: float) -> None:
    pipeline.unet.conv_in_ahead.weight.data.normal_(std=spread, generator=torch.Generator().manual_seed(1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.lists(st.booleans(), min_size=4, max_size=4))
def test_the_slices_ahead_count_once_that_is_learnt_and_if_they_are_there(seed: int, there: list[bool]) -> None:
    pipe = shows_ahead()
    query, mask = blobs(seed)[None, None].expand(2, 3, -1, -1), disc(48, 48, 20)[None, None]
    ahead = torch.stack([blobs(seed + 1 + number) for number in range(4)]).view(2, 2, 96, 96)
    others = torch.stack([blobs(seed + 5 + number) for number in range(4)]).view(2, 2, 96, 96)
    is_there = torch.tensor(there).view(2, 2)
    mixed = torch.where(is_there[..., None, None], ahead, others)
    with torch.no_grad():
        bank, latents = pipe.encode_support(query[:1, None], mask), pipe.encode_images(query)

        def predicted(*shown: torch.Tensor) -> torch.Tensor:
            return pipe.predict(latents, bank, pipe.hints(query, bank, None, None, None, *shown))

        teach(pipe, 0.0)
        assert torch.equal(predicted(ahead, is_there), predicted())
        teach(pipe, 0.1)
        taught = predicted(ahead, is_there)
        assert torch.equal(predicted(mixed, is_there), taught), "what is not there does not count"
        for row in range(2):
            changes = not torch.equal(taught[row], predicted()[row])
            assert changes == bool(is_there[row].any())


def test_a_pipeline_that_folds_gives_masks_back_exactly_and_does_without_its_autoencoder() -> None:
    pipe = new_built_in(0, Size(resolution=32, channels=(16, 16)))
    images, masks = torch.rand(3, 3, 32, 32) * 2 - 1, (torch.rand(3, 32, 32) > 0.5).float()
    plain = pipe(images[:1], masks[:1], images).probabilities
    pipe.register_to_config(folds=True)
    torch.testing.assert_close(pipe.decode(pipe.encode_masks(masks)).mean(1), masks)
    output = pipe(images[:1], masks[:1], images)
    assert output.maps.shape == (3, 3, 32, 32) and not torch.allclose(output.probabilities, plain)
    for network in (pipe.vae.encoder, pipe.vae.decoder):
        for parameter in network.parameters():
            torch.nn.init.constant_(parameter, float("nan"))
    torch.testing.assert_close(pipe(images[:1], masks[:1], images).probabilities, output.probabilities)


def test_the_slices_ahead_are_encoded_or_folded_to_the_same_grey_levels() -> None:
    pipe = starting_pipeline(TrainingConfig(cases="", output="", start="built-in", ahead=1.0))
    query, mask = blobs(0).expand(1, 3, -1, -1), disc(48, 48, 20)[None]
    ahead = torch.stack([blobs(1), blobs(2)])[None]
    with torch.no_grad():
        bank = pipe.encode_support(query[None], mask[None])
        folds, encodes = [], []
        for found in (folds, encodes):
            hints = pipe.hints(query, bank, ahead=ahead, is_there=torch.tensor([[True, False]]))
            first, is_first_there, *second = hints.ahead[0].split([16, 1, 17])
            found.append(first)
            assert is_first_there.eq(1).all() and not second[0].any()
            pipe.vae.register_to_config(latent_channels=4)  # as of an autoencoder that cannot fold pixels
    torch.testing.assert_close(folds[0], encodes[0], atol=0.1, rtol=0)
    torch.testing.assert_close(folds[0], folded(ahead[0, :1], 4)[0] * pipe.vae.config.scaling_factor)


def test_a_new_input_for_the_slices_ahead_changes_no_voxel_before_it_has_learnt() -> None:
    scan, labels = a_block()
    support = SupportSet.from_labelmap(scan, labels, slices=[4])

    def found(pipeline: SDFSMISPipeline, query: Volume = scan) -> np.ndarray:
        with torch.no_grad():
            return Segmenter(pipeline, "test").segment(query, support).probabilities[1]

    pipe = shows_ahead()
    teach(pipe, 0.0)
    shipped = Segmenter.from_pretrained("built-in", "cpu").pipeline
    assert pipe.takes_ahead and not shipped.takes_ahead
    np.testing.assert_array_equal(found(pipe), found(shipped))
    teach(pipe, 0.1)
    assert np.abs(found(pipe).astype(int) - found(shipped)).max() > 10


def test_the_slices_ahead_are_those_of_the_way_and_none_behind_the_end() -> None:
    """Of a scan with slices of 8 mm, the next two, and of one with thin slices, those 3 and 6 mm further."""
    assert slices_ahead(5, -1, propagation_stride(8.0), 20) == [4, 3]
    assert slices_ahead(5, 1, propagation_stride(0.8), 12) == [9, None]
    assert slices_ahead(11, 1, 1, 12) == slices_ahead(3, 0, 1, 12) == [None, None]


def test_what_is_known_changes_nothing_at_first_and_reaches_the_networks_once_they_have_learnt_it() -> None:
    pipe = starting_pipeline(TrainingConfig(cases="", output="", start="built-in"))
    assert pipe.takes_known
    mask = np.zeros((6, 24, 24), dtype=np.uint8)
    mask[1:5, 6:18, 6:18] = 1
    scan = Volume(
        100 * mask.astype(np.float32), Geometry(mask.shape, (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    )
    planes = SupportSet.from_labelmap(scan, Volume(mask, scan.geometry), slices=[(0, 3), (2, 12)])

    def found(pipeline: SDFSMISPipeline) -> np.ndarray:
        with torch.no_grad():
            return Segmenter(pipeline, "test").segment(scan, planes).probabilities[1]

    pipe.unet.conv_in_known.weight.data.zero_()
    untaught = found(pipe)
    pipe.unet.conv_in_known.weight.data.normal_(std=1.0, generator=torch.Generator().manual_seed(1))
    taught = found(pipe)
    pipe.unet.register_to_config(known=False)
    np.testing.assert_array_equal(found(pipe), untaught)
    assert np.abs(taught.astype(int) - untaught).max() > 10
