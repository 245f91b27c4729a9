"""A run that was cut off goes on where it was, and what it gives is what it would have given; runs fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from SDFSMISLib import Segmenter, SupportSet, Volume
from SDFSMISLib.inference.networks import LatentCache, Networks
from SDFSMISLib.inference.run import EarlierResults, Result, Run
from SDFSMISLib.model.unet import Hints, SupportBank
from SDFSMISLib.options import RunOptions
from SDFSMISLib.slices import SliceResult, SliceStack
from small_scans import BrightPipeline, ball_scan, painted_on


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def trained() -> Segmenter:
    return Segmenter.from_pretrained("built-in", "cpu")


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


def slices_of(results: list[Result]) -> dict[tuple[int, int], np.ndarray]:
    finished = EarlierResults()
    for result in results:
        finished.add(result)
    return finished.slices


KINDS = ["one painted", "two painted", "independent", "another scan", "another scan, independent", "some slices"]


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, trained: Segmenter) -> tuple[Run, list[Result], dict]:
    """How to make a run, what it gives, and how many passes of the networks it takes."""
    scan, labelmap = ball_scan((14, 36, 32), (1.0, 1.0, 2.0))
    scan, labelmap = noisy(scan), two_halves(labelmap)
    painted = (5, 9) if request.param == "two painted" else (7,)
    support = SupportSet.from_labelmap(scan, painted_on(labelmap, *painted), None, axis=0)
    query = noisy(ball_scan((9, 32, 36), (1.0, 1.1, 3.0))[0]) if "another" in request.param else scan
    strategy = "independent" if "independent" in request.param else "propagate"
    slices = [4, 10, 11] if request.param == "some slices" else None

    def made(earlier: EarlierResults | None = None, latents: LatentCache | None = None) -> Run:
        options = RunOptions(strategy, batch_size=4)
        return trained.run(SliceStack.of(query, 0), support, options, slices=slices, earlier=earlier, latents=latents)

    return made, results_of(made()), {"cuts": 5}


def test_a_run_that_was_cut_off_anywhere_ends_with_the_same_bytes(case) -> None:
    made, whole, options = case
    expected = slices_of(whole)
    for cut in np.linspace(0, len(whole), options["cuts"], dtype=int)[1:-1]:
        finished = EarlierResults()
        for result in whole[:cut]:
            finished.add(result)
        before = dict(finished.slices)
        rest = slices_of(results_of(made(finished)))
        assert not set(rest) & set(before), "nothing that is there is computed again"
        together = before | rest
        assert set(together) == set(expected)
        for place, probability in expected.items():
            np.testing.assert_array_equal(together[place], probability, err_msg=f"cut at {cut}: {place}")


def test_a_run_that_was_finished_computes_nothing(case, monkeypatch: pytest.MonkeyPatch) -> None:
    made, whole, _ = case
    finished = EarlierResults()
    for result in whole:
        finished.add(result)
    run = made(finished)
    monkeypatch.setattr(type(run._networks.pipeline), "segment", None)
    assert results_of(run) == []
    assert run.done == run.total == len(finished.slices)


def test_progress_goes_on_where_it_was(case) -> None:
    made, whole, _ = case
    finished = EarlierResults()
    for result in whole[: len(whole) // 2]:
        finished.add(result)
    counted = [result.finished for result in results_of(made(finished)) if isinstance(result, SliceResult)]
    assert counted == list(range(len(finished.slices) + 1, made().total + 1))


def test_latents_that_were_encoded_before_change_nothing(case) -> None:
    made, whole, _ = case
    cache = LatentCache(1 << 24)

    def named() -> Run:
        run = made(latents=cache)
        scan = run.scan
        object.__setattr__(scan, "identity", lambda index: f"slice {index}")
        return run

    first, misses = slices_of(results_of(named())), cache.misses
    again = slices_of(results_of(named()))
    assert cache.hits >= misses > 0 and cache.misses == misses
    for place, probability in slices_of(whole).items():
        np.testing.assert_array_equal(first[place], probability)
        np.testing.assert_array_equal(again[place], probability)


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
