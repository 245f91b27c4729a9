"""The backend over real sockets: right answers for many at once and for each user, and nothing held behind them."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from SDFSMISLib import Segmenter
from SDFSMISLib.options import RunOptions
from SDFSMISLib.server.settings import ServerLimits
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.trainer import starting_pipeline
from SDFSMISLib.wire import content_address
from serving import Backend, is_right, records, request_of, running, segmented, task
from small_scans import BrightPipeline

TOKENS = ("first-token-of-16-letters", "second-token-of-16-letters")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def shared() -> Iterator[Backend]:
    """A backend of several users."""
    with running(tokens=TOKENS) as made:
        yield made


def test_a_painted_slice_becomes_all_others(backend: Backend) -> None:
    asked = task()
    status, headers, answer = backend.ask("POST", "/segmentations", request_of(backend, asked))
    told = records(answer)
    assert status == 200 and headers["content-type"].startswith("application/x-ndjson")
    assert [told[0]["type"], told[-1]["type"]] == ["start", "end"] and told[0]["total"] == 11
    slices = [one for one in told if one["type"] == "slice"]
    assert sorted(one["index"] for one in slices) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert [one["finished"] for one in slices] == list(range(1, 12))
    assert set(told[-1]["seconds"]) == {"total", "waiting", "computing"} and told[-1]["slices"] == 11
    assert is_right(segmented(backend.client(), asked), asked)


@pytest.mark.parametrize("strategy", ["propagate", "independent"])
def test_a_run_over_two_views_that_is_cut_anywhere_ends_with_the_same_bytes(backend: Backend, strategy: str) -> None:
    request = request_of(backend, task(seed=7, views=[(2, 22)]), strategy=strategy)
    told = records(backend.ask("POST", "/segmentations", request)[2])
    assert told[0]["labels"] == [{"label": 1, "axes": [0, 2], "fused": True}] and told[0]["total"] == 11 + 39

    def slices(told: list[dict[str, Any]], stage: str) -> dict[tuple[int, int], tuple[list[int], str]]:
        found = {(one["axis"], one["index"]): (one["box"], one["data"]) for one in told if one.get("stage") == stage}
        assert len(found) == sum(one.get("stage") == stage for one in told), "each comes once"
        return found

    previews, final = slices(told, "preview"), slices(told, "final")
    assert set(final) == {(0, index) for index in range(12) if index != 6} and len(previews) == 50
    for cut in (5, 30, len(told) - 5):  # along the first axis, along the second, between fused slices
        earlier: dict[str, list[dict[str, Any]]] = {"slice": [], "lane": []}
        for one in told[1:cut]:
            if one.get("stage") != "final":
                names = ("label", "axis", "index", "box", "data", *(["start"] if one["type"] == "lane" else []))
                earlier[one["type"]].append({name: one[name] for name in names})
        again = request | {"finished": earlier["slice"], "lanes": earlier["lane"]}
        rest = records(backend.ask("POST", "/segmentations", again)[2])
        assert slices(rest, "final") == final and rest[-1]["slices"] == 50
        known = {(one["axis"], one["index"]) for one in earlier["slice"]}
        assert slices(rest, "preview") == {place: one for place, one in previews.items() if place not in known}


def test_the_same_scan_is_sent_once(backend: Backend) -> None:
    asked, sent = task(seed=5), []
    for _ in range(2):
        with backend.client().segment(asked.stacks, asked.support) as run:
            list(run)
        missing = backend.ask("POST", "/slices/missing", {"slices": [content_address(asked.scan.slice(0, 3))]})
        sent.append(json.loads(missing[2]))
    assert sent == [{"missing": []}, {"missing": []}]
    metrics = backend.ask("GET", "/metrics")[2].decode()
    assert 'sdfsmis_stored_slices_asked_total{there="yes"}' in metrics


def test_networks_that_look_ahead_get_the_slices_for_it_and_give_the_same_as_here() -> None:
    pipeline = starting_pipeline(TrainingConfig(cases="", output="", start="built-in", ahead=1.0))
    pipeline.register_to_config(resolution=32)
    pipeline.unet.conv_in_ahead.weight.data.normal_(std=0.03, generator=torch.Generator().manual_seed(1))
    asked = task((16, 40, 40), seed=9)
    with torch.no_grad():
        here = Segmenter(pipeline, "looks ahead").segment(asked.scan, asked.support, slices=[9])
    with running(pipeline) as backend:
        assert backend.client().capabilities().models[0].looks_ahead
        found = segmented(backend.client(), asked, slices=[9])
        assert backend.store.bytes == 10 * asked.scan.voxels[0].nbytes, "slices 8 and 9, and 8 mm on either side"
    np.testing.assert_array_equal(found[9], here.probabilities[1][9])
    assert (found[9] > 127).any()


def test_a_correction_encodes_only_what_looks_otherwise(backend: Backend) -> None:
    """Whole slices look the same whatever is painted."""
    asked, engine = task((14, 40, 40), seed=6), backend.engine
    corrected = task((14, 40, 40), painted=(7, 3), seed=6)
    segmented(backend.client(), asked, options=RunOptions("independent", "full"))
    misses = engine.latents.misses
    assert is_right(segmented(backend.client(), corrected, options=RunOptions("independent", "full")), corrected)
    assert engine.latents.misses == misses and engine.latents.hits > 0


def test_slices_of_another_view_are_encoded_once_and_forgotten_with_the_scan() -> None:
    options = RunOptions("independent", "full")
    with running() as backend:
        asked, latents = task((6, 40, 40), seed=8, views=[(2, 22)]), backend.engine.latents
        for hits in (0, 6 + 40 - 2):
            assert is_right(segmented(backend.client(), asked, options=options), asked)
            assert (latents.misses, latents.hits) == (6 + 40 - 2, hits)
        assert backend.store.bytes == asked.scan.voxels.nbytes, "no slice of the other view was sent"
        backend.ask("DELETE", f"/slices/{content_address(asked.scan.slice(0, 1))}")
        assert latents.bytes == (6 - 2) * 3 * 40 * 40 * 4, "those of the axial slices that are left"


def test_what_was_deleted_is_gone(backend: Backend) -> None:
    address = backend.put(np.arange(12, dtype=np.int16).reshape(3, 4))
    assert backend.ask("HEAD", f"/slices/{address}")[0] == 200
    assert backend.ask("DELETE", f"/slices/{address}")[0] == 204
    assert backend.ask("HEAD", f"/slices/{address}")[0] == 404
    assert backend.ask("DELETE", f"/slices/{address}")[0] == 204


def test_twenty_clients_at_once_get_each_their_own_answer(backend: Backend) -> None:
    tasks = [task((8 + number % 5, 30 + number, 44 - number), seed=number) for number in range(20)]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda asked: segmented(backend.client(), asked), tasks))
    for asked, one in zip(tasks, found, strict=True):
        local = Segmenter(BrightPipeline()).segment(asked.scan, asked.support)
        for index, probability in one.items():
            np.testing.assert_array_equal(probability, local.probabilities[1][index])
        assert len(one) == len(asked.scan.voxels) - 1


def test_later_requests_leave_nothing_behind() -> None:
    """Behind the first ones, which fill what is kept up to its limits: not even half of one slice each."""
    slice_bytes, limits = 64 * 64 * 2, ServerLimits(store_bytes=1 << 16, latent_bytes=1 << 16)
    tracemalloc.start()
    try:
        with running(limits=limits) as backend:

            def ask(seeds: range) -> None:
                for seed in seeds:
                    request = request_of(backend, task((4, 64, 64), seed=seed))
                    assert records(backend.ask("POST", "/segmentations", request)[2])[-1]["type"] == "end"

            ask(range(10))
            before = held_bytes()
            ask(range(10, 30))
            assert held_bytes() - before < 20 * slice_bytes / 2
            assert backend.store.bytes <= limits.store_bytes and backend.engine.latents.bytes <= limits.latent_bytes
            assert backend.engine.scheduler.active_runs == 0
    finally:
        tracemalloc.stop()


def held_bytes() -> int:
    """Memory of this process that is still referred to: of Python and NumPy, and of torch's tensors."""
    gc.collect()
    storages = [one.untyped_storage() for one in gc.get_objects() if type(one) is torch.Tensor]
    return tracemalloc.get_traced_memory()[0] + sum({one.data_ptr(): one.nbytes() for one in storages}.values())


# -- several users


def test_each_token_has_slices_of_its_own(shared: Backend) -> None:
    asked = task(seed=9)
    request = request_of(shared, asked)  # sent by the first
    second = {"Authorization": f"Bearer {TOKENS[1]}"}
    address = request["query"]["slices"][0][1]
    assert shared.ask("HEAD", f"/slices/{address}")[0] == 200
    assert shared.ask("HEAD", f"/slices/{address}", headers=second)[0] == 404
    status, _, answer = shared.ask("POST", "/segmentations", request, second)
    assert status == 409 and address in json.loads(answer)["error"]["missing"]
    shared.ask("DELETE", f"/slices/{address}", headers=second)
    assert shared.ask("HEAD", f"/slices/{address}")[0] == 200
    assert is_right(segmented(shared.client(TOKENS[1]), asked), asked)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({}, "token_missing"),
        ({"Authorization": "Basic abc"}, "token_missing"),
        ({"Authorization": "Bearer "}, "token_missing"),
        ({"Authorization": "Bearer wrong-token-of-16-letters"}, "token_wrong"),
        ({"Authorization": f"Bearer {TOKENS[0][:-1]}"}, "token_wrong"),
        ({"Authorization": "Bearer \xe9\xe9"}, "token_wrong"),
    ],
)
def test_without_the_token_nothing_is_told(shared: Backend, header: dict[str, str], code: str) -> None:
    anonymous = replace(shared, token=None)
    for method, path in [
        ("GET", "/capabilities"),
        ("GET", "/metrics"),
        ("POST", "/segmentations"),
        ("GET", "/nothing"),
    ]:
        status, headers, answer = anonymous.ask(method, path, headers=header)
        assert (status, json.loads(answer)["error"]["code"]) == (401, code)
        assert headers["www-authenticate"] == "Bearer"
    assert anonymous.ask("GET", "/healthz")[0] == 200
