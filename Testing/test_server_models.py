"""Learned models on the backend: each its owner's alone, used by its name, a few in memory, forgotten when told."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learning_examples import SIDE, finished_model, model_path, models_of, refused, unfinished_model
from SDFSMISLib import Segmenter
from SDFSMISLib.cli import main
from SDFSMISLib.errors import InputError
from SDFSMISLib.protocol import read_record, unpack_probability
from SDFSMISLib.server import loaded_models
from SDFSMISLib.server.access import Access
from SDFSMISLib.server.adaptations import Adaptations
from SDFSMISLib.server.limits import Limits
from SDFSMISLib.server.models import LearnedModel, LearnedModels, Lesson
from serving import Backend, Task, request_of, running, task

TOKENS = ("first-token-of-16-letters", "second-token-of-16-letters")
SECOND = {"Authorization": f"Bearer {TOKENS[1]}"}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def owner(token: str) -> str:
    """Who a token stands for, among several."""
    return Access(None, TOKENS, 0, 0)._owner({"authorization": f"Bearer {token}"})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adaptations")
    finished_model(folder, "kidney", owner(TOKENS[0]), seed=3)
    finished_model(folder, "Łeber 2", owner(TOKENS[0]), seed=4)
    finished_model(folder, "kidney", owner(TOKENS[1]), seed=5)
    return folder


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[Backend]:
    with running(adaptations=folder, tokens=TOKENS) as made:
        yield made


def folder_of(backend: Backend, name: str, token: str = TOKENS[0]) -> LearnedModel:
    assert backend.adaptations is not None
    return backend.adaptations.models.of(owner(token), name)


def segmented(backend: Backend, asked: Task, model: str | None) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """The first record, and the probability of each slice."""
    status, _, answer = backend.ask("POST", "/segmentations", request_of(backend, asked, model=model))
    assert status == 200, answer
    told = [read_record(line) for line in answer.splitlines(keepends=True)]
    assert told[-1]["type"] == "end", told[-1]
    slices = [one for one in told if one["type"] == "slice"]
    return told[0], {one["index"]: unpack_probability(one, asked.stack.native_shape) for one in slices}


# -- which there are


def test_each_token_sees_the_served_model_and_its_own(backend: Backend) -> None:
    assert models_of(backend) == [("bright", False), ("kidney", True), ("Łeber 2", True)]
    assert models_of(backend, **SECOND) == [("bright", False), ("kidney", True)]
    told = json.loads(backend.ask("GET", "/capabilities")[2])
    learned = told["models"][1]
    assert learned["resolution"] == SIDE and len(learned["weights_sha256"]) == 64
    assert told["adaptations"] == {
        "running": False,
        "most_minutes": 60.0,
        "most_scans": 40,
        "most_bytes": Limits().scan_bytes,
    }


# -- segmenting with them


def test_a_learned_model_segments_as_it_does_without_a_backend(backend: Backend) -> None:
    asked, model = task((6, 40, 40)), folder_of(backend, "Łeber 2")
    start, found = segmented(backend, asked, "Łeber 2")
    assert model.outcome is not None
    assert (start["model"], start["weights_sha256"]) == ("Łeber 2", model.outcome.weights_sha256)
    local = Segmenter.from_pretrained(model.pipeline, "cpu").segment(asked.scan, asked.support)
    assert len(found) == 5
    for index, probability in found.items():
        np.testing.assert_array_equal(probability, local.probabilities[1][index])


@pytest.mark.parametrize("name", [None, "bright"])
def test_without_a_name_or_by_its_own_the_served_model_segments(backend: Backend, name: str | None) -> None:
    assert segmented(backend, task((5, 40, 40)), name)[0]["model"] == "bright"


def test_two_owners_of_one_name_get_each_their_own_weights(backend: Backend) -> None:
    mine, theirs = folder_of(backend, "kidney"), folder_of(backend, "kidney", TOKENS[1])
    assert mine.outcome is not None and theirs.outcome is not None
    assert segmented(backend, task((5, 40, 40)), "kidney")[0]["weights_sha256"] == mine.outcome.weights_sha256
    assert mine.outcome.weights_sha256 != theirs.outcome.weights_sha256


def test_a_name_whose_letters_are_put_together_otherwise_is_the_same(tmp_path: Path) -> None:
    finished_model(tmp_path, "L\u00e9ber")
    with running(adaptations=tmp_path) as backend:
        assert segmented(backend, task((5, 40, 40)), "Le\u0301ber")[0]["model"] == "L\u00e9ber"


@pytest.mark.parametrize("name", ["liver", "../models", "", "/etc"])
def test_a_model_that_is_not_there_is_missing(backend: Backend, name: str) -> None:
    request = request_of(backend, task((5, 40, 40)), model=name)
    assert refused(backend, "POST", "/segmentations", request) == (404, "model_missing")


def test_models_of_others_are_missing(backend: Backend) -> None:
    asked = request_of(backend, task((5, 40, 40)), model="Łeber 2")
    assert refused(backend, "POST", "/segmentations", asked, **SECOND) == (404, "model_missing")
    with running() as without:
        asked = request_of(without, task((5, 40, 40)), model="kidney")
        assert refused(without, "POST", "/segmentations", asked) == (404, "model_missing")


def test_encoded_slices_are_used_again_by_the_same_weights_only(backend: Backend) -> None:
    asked, latents = task((5, 40, 40), seed=8), backend.engine.latents
    segmented(backend, asked, "kidney")
    for name, again in (("kidney", True), ("Łeber 2", False)):
        misses = latents.misses
        segmented(backend, asked, name)
        assert (latents.misses == misses) == again


def test_as_many_as_may_are_in_memory_and_the_last_used_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate("abc"):
        finished_model(tmp_path, name, seed=seed)
    loaded: list[str] = []
    with running(adaptations=tmp_path) as backend:
        load = loaded_models.LoadedModels._loaded
        monkeypatch.setattr(
            loaded_models.LoadedModels,
            "_loaded",
            lambda self, model: (loaded.append(model.lesson.name), load(self, model))[1],
        )
        for name in ("a", "b", "a", "c", "a", "b"):
            engine = backend.engine
            assert engine.segmenter_of("", name).name == name
    assert loaded == ["a", "b", "c", "b"]


def test_a_model_whose_weights_are_damaged_is_one_sentence_and_the_others_work(tmp_path: Path) -> None:
    broken = finished_model(tmp_path, "broken")
    next(broken.pipeline.glob("unet/*.safetensors")).write_bytes(b"nothing")
    finished_model(tmp_path, "whole")
    with running(adaptations=tmp_path) as backend:
        asked = task((5, 40, 40))
        assert refused(backend, "POST", "/segmentations", request_of(backend, asked, model="broken")) == (500, "failed")
        assert segmented(backend, asked, "whole")[0]["model"] == "whole"
        assert backend.ask("DELETE", "/models/broken")[0] == 204


# -- forgetting them


def test_a_forgotten_model_is_gone_from_disk_and_the_others_are_not(tmp_path: Path) -> None:
    for name in ("a.b", "ребро"):
        finished_model(tmp_path, name)
    with running(adaptations=tmp_path) as backend:
        segmented(backend, task((5, 40, 40)), "ребро")
        assert backend.ask("DELETE", model_path("ребро"))[0] == 204
        assert models_of(backend) == [("bright", False), ("a.b", True)]
        assert refused(backend, "DELETE", model_path("ребро")) == (404, "model_missing")
    assert len(list((tmp_path / "models" / "everybody").iterdir())) == 1


def test_nobody_forgets_a_model_of_another(backend: Backend) -> None:
    assert refused(backend, "DELETE", model_path("Łeber 2"), **SECOND) == (404, "model_missing")
    assert ("Łeber 2", True) in models_of(backend)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/..%2f..%2fmodels", 404),
        ("/models/%2e%2e", 422),
        ("/models/a%00b", 422),
        ("/models/-a", 422),
        ("/models/a%20", 404),
        ("/models/%ff%fe", 422),
        (f"/models/{'a' * 41}", 422),
        ("/models/bright", 404),
    ],
)
def test_what_is_no_name_of_a_learned_model_forgets_nothing(backend: Backend, path: str, status: int) -> None:
    before = models_of(backend)
    assert refused(backend, "DELETE", path)[0] == status
    assert models_of(backend) == before


# -- over time


def test_models_outlive_the_backend(tmp_path: Path) -> None:
    finished_model(tmp_path, "kidney")
    for _ in range(2):
        with running(adaptations=tmp_path) as backend:
            assert models_of(backend) == [("bright", False), ("kidney", True)]


def test_what_was_left_unfinished_goes_after_its_time_and_what_is_no_model_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    young, old = (unfinished_model(tmp_path, Lesson(name, (), 1.0, "")) for name in ("new", "old"))
    no_model = folder / "everybody" / ("0" * 32)
    (no_model / "pipeline").mkdir(parents=True)
    for path in (old.folder, *old.folder.iterdir()):
        os.utime(path, (time.time() - 200,) * 2)
    models = LearnedModels(folder, 20, 100.0)
    assert (young.folder.exists(), old.folder.exists(), no_model.exists()) == (True, False, False)
    assert models.finished("") == []
    models.forget("", "new")
    assert not young.folder.exists()


def test_a_model_that_is_not_finished_does_not_count_against_others(tmp_path: Path) -> None:
    for name in ("a", "b"):
        unfinished_model(tmp_path, Lesson(name, (), 1.0, ""))
    models = LearnedModels(tmp_path / "models", 1, 100.0)
    assert models.taken("", Lesson("c", (), 1.0, "")) is None


def test_what_cannot_be_looked_at_stays_and_the_rest_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, old = (unfinished_model(tmp_path, Lesson(name, (), 1.0, "")).folder for name in ("a", "b"))
    models, stat = LearnedModels(tmp_path / "models", 20, 100.0), Path.stat
    for path in (hidden, old, *hidden.iterdir(), *old.iterdir()):
        os.utime(path, (time.time() - 200,) * 2)

    def failing(path: Path, **options: Any) -> os.stat_result:
        if hidden in path.parents:
            raise PermissionError(13, "out of reach")
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", failing)
        models.expire()
    assert (hidden.exists(), old.exists()) == (True, False)


def test_two_backends_do_not_share_a_folder(tmp_path: Path) -> None:
    with running(adaptations=tmp_path), pytest.raises(InputError, match="Another backend"):
        Adaptations(tmp_path, Limits())
    Adaptations(tmp_path, Limits()).close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--adaptations", "{folder}", "--engine", "ray"], "leave one of the two out"),
        (["--adaptations", "{file}"], "name another folder"),
    ],
)
def test_a_bad_option_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    (tmp_path / "file").write_text("mine")
    filled = [one.format(folder=tmp_path / "folder", file=tmp_path / "file") for one in options]
    assert main(["serve", "--port", "0", *filled]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1, err
