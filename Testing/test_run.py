"""A run that was cut off goes on where it was, and what it gives is what it would have given; runs fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch

from SDFSMISLib import Segmenter, SupportSet, Volume
from SDFSMISLib.inference.networks import LatentCache, Networks
from SDFSMISLib.inference.run import EarlierResults, Result, Run
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.model.unet import Hints, SupportBank
from SDFSMISLib.options import RunOptions
from SDFSMISLib.slices import SliceResult, SliceStack
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.trainer import starting_pipeline
from small_scans import BrightPipeline, ball_scan, painted_on


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def trained() -> Segmenter:
    """The built-in networks on a grid of a ninth of their pixels, on which they find the ball too."""
    segmenter = Segmenter.from_pretrained("built-in", "cpu")
    segmenter.pipeline.register_to_config(resolution=32)
    return segmenter


def noisy(scan: Volume) -> Volume:
    noise = np.random.default_rng(0).normal(0, 12, scan.voxels.shape)
    return Volume((scan.voxels + noise).astype(np.float32), scan.geometry)


def two_halves(labelmap: Volume) -> Volume:
    """The ball as two labels, one beside the other."""
    voxels = labelmap.voxels.copy()
    voxels[:, : voxels.shape[1] // 2] *= 2
    return Volume(voxels, labelmap.geometry)


def results_of(run: Run) -> list[Result]:
    with torch.no_grad():
        return [result for results in run.steps() for result in results]


def kept(results: list[Result]) -> EarlierResults:
    finished = EarlierResults()
    for result in results:
        finished.add(result)
    return finished


@cache
def looking_ahead() -> SDFSMISPipeline:
    """The same networks with an input for the slices that come next, of which they have learnt a little."""
    pipeline = starting_pipeline(TrainingConfig(cases="", output="", start="built-in", ahead=1.0))
    pipeline.register_to_config(resolution=32)
    pipeline.unet.conv_in_ahead.weight.data.normal_(std=0.03, generator=torch.Generator().manual_seed(1))
    return pipeline


KINDS = [
    "one painted",
    "two painted",
    "independent",
    "another scan",
    "another scan, independent",
    "some slices",
    "looking ahead",
    "looking ahead, some slices",
]


def run_of(kind: str, earlier: EarlierResults | None = None, latents: LatentCache | None = None) -> Run:
    scan, labelmap = ball_scan((8, 36, 32), (1.0, 1.0, 2.0))
    scan, labelmap = noisy(scan), two_halves(labelmap)
    painted = (2, 5) if kind == "two painted" else (4,)
    support = SupportSet.from_labelmap(scan, painted_on(labelmap, *painted), None, axis=0)
    query = noisy(ball_scan((6, 32, 36), (1.0, 1.1, 3.0))[0]) if "another" in kind else scan
    options = RunOptions("independent" if "independent" in kind else "propagate", batch_size=4)
    slices = [2, 5, 6] if "some slices" in kind else None
    labels = {label: support.for_label(label) for label in support.labels}
    pipeline = looking_ahead() if "ahead" in kind else trained().pipeline
    return Run(pipeline, SliceStack.of(query, 0), labels, options, slices, latents, earlier)


@cache
def whole(kind: str) -> list[Result]:
    """What a run gives that nothing cuts off."""
    return results_of(run_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_cut_off_anywhere_ends_with_the_same_bytes_and_counts_on(kind: str) -> None:
    expected = kept(whole(kind)).slices
    assert any((probability > 127).any() for probability in expected.values())
    for cut in (len(whole(kind)) // 3, 2 * len(whole(kind)) // 3):
        finished = kept(whole(kind)[:cut])
        before = dict(finished.slices)
        run = run_of(kind, finished)
        results = results_of(run)
        rest = kept(results).slices
        assert not set(rest) & set(before), "nothing that is there is computed again"
        counted = [result.finished for result in results if isinstance(result, SliceResult)]
        assert counted == list(range(len(before) + 1, run.total + 1))
        together = before | rest
        assert set(together) == set(expected)
        for place, probability in expected.items():
            np.testing.assert_array_equal(together[place], probability, err_msg=f"cut at {cut}: {place}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_finished_computes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = kept(whole(kind))
    run = run_of(kind, finished)
    monkeypatch.setattr(type(run._networks.pipeline), "segment", None)
    assert results_of(run) == []
    assert run.done == run.total == len(finished.slices)


def named_slices(kind: str, latents: LatentCache) -> dict[tuple[int, int], np.ndarray]:
    """What a run gives on slices that have an identity, as a backend's have."""
    run = run_of(kind, latents=latents)
    object.__setattr__(run.scan, "identity", lambda index: f"slice {index}")
    return kept(results_of(run)).slices


@pytest.mark.parametrize("kind", ["independent", "another scan, independent"])
def test_latents_that_were_encoded_before_change_nothing(kind: str) -> None:
    latents = LatentCache(1 << 24)
    once, misses = named_slices(kind, latents), latents.misses
    again = named_slices(kind, latents)
    assert latents.hits >= misses > 0 and latents.misses == misses
    for place, probability in kept(whole(kind)).slices.items():
        np.testing.assert_array_equal(once[place], probability)
        np.testing.assert_array_equal(again[place], probability)


@pytest.mark.parametrize("kind", ["one painted", "two painted", "looking ahead"])
def test_what_was_predicted_before_is_not_predicted_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = LatentCache(1 << 24)
    once = named_slices(kind, latents)
    monkeypatch.setattr(type(trained().pipeline), "segment", None)
    again = named_slices(kind, latents)
    for place, probability in kept(whole(kind)).slices.items():
        np.testing.assert_array_equal(once[place], probability)
        np.testing.assert_array_equal(again[place], probability)


def test_another_painted_slice_changes_what_is_predicted() -> None:
    latents = LatentCache(1 << 24)
    named_slices("one painted", latents)
    for place, probability in named_slices("two painted", latents).items():
        np.testing.assert_array_equal(probability, kept(whole("two painted")).slices[place])


def test_another_slice_ahead_changes_what_is_predicted() -> None:
    def found(latents: LatentCache | None, darkened: int | None = None) -> dict[tuple[int, int], np.ndarray]:
        run = run_of("looking ahead, some slices", latents=latents)
        read = run.scan.read
        object.__setattr__(run.scan, "read", lambda index: read(index) * (0.2 if index == darkened else 1))
        object.__setattr__(run.scan, "identity", lambda index: f"slice {index}{' dark' * (index == darkened)}")
        return kept(results_of(run)).slices

    latents = LatentCache(1 << 24)
    before, after, expected = found(latents), found(latents, 7), found(None, 7)
    for place, probability in expected.items():
        np.testing.assert_array_equal(after[place], probability)
    assert any((before[place] != expected[place]).any() for place in expected), "slice 7 itself is not segmented"


@pytest.mark.parametrize(("kind", "needed"), [("some slices", range(2, 7)), ("looking ahead, some slices", range(8))])
def test_a_run_reads_what_it_says(kind: str, needed: range) -> None:
    run = run_of(kind)
    read, places = run.scan.read, set()
    object.__setattr__(run.scan, "read", lambda index: places.add(index) or read(index))
    assert run.needed() == list(needed)
    results_of(run)
    assert places == set(needed)


# -- memory


class Narrow(BrightPipeline):
    """A pipeline on a device that holds `most` queries at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def segment(self, latents: torch.Tensor, bank: SupportBank, hints: Hints | None = None) -> torch.Tensor:
        if len(latents) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().segment(latents, bank, hints)


@pytest.mark.parametrize("strategy", ["propagate", "independent"])
def test_a_device_out_of_memory_gets_half_as_much_at_a_time(strategy: str) -> None:
    scan, labelmap = ball_scan((16, 40, 40), (1.0, 1.0, 1.0))
    support = SupportSet.from_labelmap(scan, painted_on(labelmap, 8), 1, axis=0)
    wide = Segmenter(BrightPipeline()).segment(scan, support, strategy)
    pipeline = Narrow(1)
    narrow = Segmenter(pipeline).segment(scan, support, strategy)
    np.testing.assert_array_equal(narrow.labelmap.voxels, wide.labelmap.voxels)
    assert max(queries for queries, _ in pipeline.batches) == 1


def test_a_device_too_small_for_one_slice_says_so() -> None:
    scan, labelmap = ball_scan()
    support = SupportSet.from_labelmap(scan, painted_on(labelmap, 5), 1, axis=0)
    with pytest.raises(RuntimeError, match="out of memory"):
        Segmenter(Narrow(0)).segment(scan, support)


def test_another_failure_is_not_taken_for_a_lack_of_memory() -> None:
    networks, tried = Networks(BrightPipeline(), 8), []

    def broken(rows: list[int]) -> Iterator[int]:
        tried.append(len(rows))
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        networks.in_parts(list(range(8)), broken)
    assert tried == [8]


def test_what_was_used_longest_ago_leaves_a_full_cache() -> None:
    latent = torch.zeros(1, 4, 4)
    cache = LatentCache(2 * latent.nbytes)
    for name in ("a", "b"):
        cache.put(name, 0, latent)
    assert cache.get("a", 0) is not None
    cache.put("c", 0, latent)
    assert cache.get("b", 0) is None and cache.get("a", 0) is not None and cache.bytes == 2 * latent.nbytes
    cache.forget("a")
    assert cache.get("a", 0) is None and cache.bytes == latent.nbytes
