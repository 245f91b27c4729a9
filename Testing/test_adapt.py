"""Adaptation: weights learn from scans without labels, are never worse than at the start, and survive a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from SDFSMISLib.adapt_command import adapt as adapt_command
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.model.digest import weights_digest
from SDFSMISLib.model.loading import load_pipeline
from SDFSMISLib.support import SupportSet
from SDFSMISLib.training import adaptation, adaptation_recipe
from SDFSMISLib.training.adaptation import adapt
from SDFSMISLib.training.adaptation_measure import HeldOut, Score
from SDFSMISLib.training.adaptation_propagation import Propagation
from SDFSMISLib.training.adaptation_recipe import recipe
from SDFSMISLib.training.adaptation_scans import AdaptationScan, _organ_like, prepared, split
from SDFSMISLib.training.batch import EpisodeBatch
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.learner import EpisodeLearner
from SDFSMISLib.training.levels import PARTNERS, Levels, matched, paired
from SDFSMISLib.training.slices import SliceKey
from SDFSMISLib.training.trainer import train
from SDFSMISLib.training.unlabelled_episodes import DrawnSlice, UnlabelledSampler
from SDFSMISLib.training.volumes import MainAxis
from SDFSMISLib.volume import Geometry, Volume
from small_learning_child import make_small

MINUTES = 0.05


def body(seed: int, slices: int = 16, lifted: int = 0, stretched: float = 1.0) -> np.ndarray:
    """A body with organs that begin and end, (slices, 64, 64); `lifted` by slices, `stretched` across."""
    z, y, x = np.mgrid[:slices, :64, :64].astype(float)
    z, x = z - lifted, (x - 32) / stretched + 32
    noise = np.random.default_rng(seed).normal(0, 2, z.shape)
    inside = ((y - 32) / 26) ** 2 + ((x - 32) / 29) ** 2 < 1
    scan = np.where(inside, 300.0 + noise, 0.0)
    for level, row, column, reach, wide in (
        (4, 24, 20, 4, 10),
        (10, 40, 44, 4, 9),
        (8, 38, 22, 3, 7),
        (12, 22, 40, 4, 8),
    ):
        organ = ((z - level) / reach) ** 2 + ((y - row) / wide) ** 2 + ((x - column) / wide) ** 2 < 1
        scan[organ] += 120.0 + 90 * level
    return scan.astype(np.float32)


def geometry(shape: tuple[int, ...], up: float = 1.0) -> Geometry:
    return Geometry(shape, (1.5, 1.5, 5.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, up))


def write_scans(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        voxels = body(number, lifted=number % 2, stretched=1 + 0.03 * number)
        paths.append(Volume(voxels, geometry(voxels.shape)).write(folder / f"scan_{number}.nii.gz"))
    return paths


def organ(scan: np.ndarray) -> np.ndarray:
    """Where one of the organs is."""
    return (scan > 1250) & (scan < 1400)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """What takes long is made small."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of the built-in kind, small and random."""
    folder = tmp_path_factory.mktemp("start") / "weights"
    new_built_in(1, Size(resolution=32, channels=(16, 16))).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> list[AdaptationScan]:
    folder = tmp_path_factory.mktemp("scans")
    return [prepared(path, folder / "cache") for path in write_scans(folder / "files", 4)]


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"cases": "", "output": "", "seed": 3, "mix": {"cross": 1.0}, "label_share": 0.9} | changes)


def sampler(scans: list[AdaptationScan], **changes: Any) -> UnlabelledSampler:
    volumes = [scan.volume for scan in scans]
    levels = Levels(0.0, 1.0, 1.0, volumes[0].maps[0].shape[0])
    pairs = {(a.name, b.name): levels for a in volumes for b in volumes if a is not b}
    return UnlabelledSampler(volumes, 32, settings(**changes), pairs, volumes)


# -- scans


def test_supervoxels_are_made_once_and_read_from_disk(scans: list[AdaptationScan]) -> None:
    scan = scans[0]
    assert isinstance(scan.volume.image, np.memmap) and all(isinstance(part, np.memmap) for part in scan.volume.maps)
    assert scan.volume.main == MainAxis(0, "axial", True)
    assert all(part.shape == scan.volume.image.shape for part in scan.volume.maps)
    assert all(len(np.unique(part)) >= 4 for part in scan.volume.maps)


def test_an_organ_is_one_large_supervoxel(scans: list[AdaptationScan]) -> None:
    inside = scans[0].volume.maps[0][10][organ(body(0)[10])]
    found = np.bincount(inside).argmax()
    assert found and np.mean(inside == found) > 0.8


def test_skin_and_sheets_are_no_targets() -> None:
    """Five balls in a filled body, whose skin lies at the air and which a sheet cuts in two."""
    z, y, x = np.mgrid[:9, :64, :64]
    out = np.hypot(y - 32, x - 32)
    parts = np.where(out < 31, 1, 0)
    parts[(out < 31) & (out > 26)] = 2
    parts[(abs(y - 32) < 2) & (out < 26)] = 3
    for number, (row, column) in enumerate(((18, 22), (18, 42), (44, 18), (44, 32), (44, 46))):
        parts[np.hypot(y - row, x - column) < 6] = 4 + number
    kept = _organ_like(parts.astype(np.uint16), (1.0, 1.0, 1.0), 0, 0.01)
    assert {4, 5, 6, 7, 8} <= set(np.unique(kept).tolist()) and not np.isin(kept, (2, 3)).any()


def test_of_many_scans_whole_ones_are_held_out_and_of_few_some_supervoxels(scans: list[AdaptationScan]) -> None:
    learned, held = split(scans, 0)
    assert len(learned) == 3 and len(held) == 1 and held[0].name not in {volume.name for volume in learned}
    learned, held = split(scans[:1], 0)
    for one, other in zip(learned[0].maps, held[0].maps, strict=True):
        assert one.any() and other.any() and not (one.astype(bool) & other.astype(bool)).any()


def test_a_large_scan_is_averaged_to_what_memory_bears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scans: list[AdaptationScan]
) -> None:
    monkeypatch.setattr("SDFSMISLib.training.adaptation_scans.MOST_VOXELS", 20_000)
    made = prepared(write_scans(tmp_path, 1)[0], tmp_path / "cache")
    assert made.volume.image is not None and made.volume.image.size <= 20_000
    assert made.content == scans[0].content and made.volume.spacing == (5.0, 3.0, 3.0)


@pytest.mark.parametrize(
    ("voxels", "says"),
    [
        (np.zeros((3, 64, 64), dtype=np.float32), "are the least to learn from"),
        (np.zeros((16, 20, 64), dtype=np.float32), "are the least to learn from"),
        (np.full((16, 64, 64), 7, dtype=np.float32), "shows nothing"),
    ],
)
def test_a_scan_that_nothing_can_be_learned_from_is_refused(tmp_path: Path, voxels: np.ndarray, says: str) -> None:
    path = Volume(voxels, geometry(voxels.shape)).write(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match=says):
        prepared(path, tmp_path / "cache")


# -- across scans


@pytest.mark.parametrize("backwards", [False, True])
def test_levels_of_another_scan_are_found(tmp_path: Path, backwards: bool) -> None:
    made = []
    for number, lifted in enumerate((0, 3)):
        voxels = body(number, slices=20, lifted=lifted)
        turned = backwards and number == 1
        volume = Volume(voxels[::-1].copy() if turned else voxels, geometry(voxels.shape, -1.0 if turned else 1.0))
        made.append(prepared(volume.write(tmp_path / f"{number}.nii.gz"), tmp_path / "cache"))
    one, other = (scan.volume for scan in made)
    assert one.main is not None and other.main == replace(one.main, rising=not backwards)
    levels = matched(one, other)
    assert levels is not None
    for index in (6, 8, 10):
        there = levels.at(index)
        assert there is not None and abs((19 - there if backwards else there) - (index + 3)) <= 1


def test_scans_of_other_anatomies_are_no_partners(tmp_path: Path, scans: list[AdaptationScan]) -> None:
    noise = np.random.default_rng(0).normal(500, 200, (16, 64, 64)).astype(np.float32)
    other = prepared(Volume(noise, geometry(noise.shape)).write(tmp_path / "noise.nii.gz"), tmp_path / "cache")
    assert matched(scans[0].volume, other.volume) is None


def test_each_scan_has_a_few_partners_of_its_group_and_plane(scans: list[AdaptationScan]) -> None:
    volume = scans[0].volume
    assert volume.main is not None
    kinds = [("a", volume.main), ("b", volume.main), ("a", replace(volume.main, plane="coronal"))]
    many = [replace(volume, name=f"{n} {k}", group=kinds[k][0], main=kinds[k][1]) for n in range(5) for k in range(3)]
    pairs = paired(many)
    partners = {one.name: [other for first, other in pairs if first == one.name] for one in many}
    assert all(len(found) == PARTNERS for found in partners.values())
    assert all(other.split()[1] == name.split()[1] for name, found in partners.items() for other in found)
    assert not paired([]) and not paired([volume]) and set(paired(many[:4])) == {
        (many[0].name, many[3].name),
        (many[3].name, many[0].name),
    }


def test_slices_that_are_hidden_are_neither_compared_nor_painted(tmp_path: Path) -> None:
    """As in Setting II, where slices that show a tested organ are blank."""
    made = []
    for number in range(2):
        voxels = body(number, slices=24)
        voxels[10 + number : 18 + number] = 0
        path = Volume(voxels, geometry(voxels.shape)).write(tmp_path / f"{number}.nii.gz")
        made.append(prepared(path, tmp_path / "cache"))
    pairs = paired([scan.volume for scan in made])
    assert len(pairs) == 2
    levels = pairs[made[0].content, made[1].content]
    assert all(abs((levels.at(index) or 0) - index) <= 1 for index in (4, 8))  # behind them nothing tells
    drawn = sampler(made)
    one, other = made[0].volume, made[1].volume
    value = int(np.bincount(one.maps[0][8][one.maps[0][8] > 0]).argmax())
    assert drawn._carried(SliceKey(one, 0, 8, 0, (value,)), other, Levels(4.0, 1.0, 1.0, 24)) is None  # a blank one


def test_a_target_is_carried_to_where_it_lies_in_the_other_scan(scans: list[AdaptationScan]) -> None:
    drawn = sampler(scans)
    one, other = scans[0].volume, scans[2].volume
    value = int(np.bincount(one.maps[0][10][organ(body(0)[10])]).argmax())
    found = drawn._carried(SliceKey(one, 0, 10, 0, (value,)), other, Levels(0.0, 1.0, 1.0, 16))
    assert isinstance(found, DrawnSlice)
    there = organ(body(2, stretched=1.06)[10])
    assert 2 * (found.mask() & there).sum() / (found.mask().sum() + there.sum()) > 0.7


def test_episodes_across_scans_show_two_whole_slices_and_depend_on_their_number_only(
    scans: list[AdaptationScan],
) -> None:
    drawn = sampler(scans)
    drawn.batch(4, 1)
    batch, again = drawn.batch(4, 2), sampler(scans).batch(4, 2)
    assert batch.support_images.shape == (4, 1, 32, 32) and batch.displacements is None
    assert (batch.support_masks.sum((2, 3)) > 0).all() and batch.query_masks.any()
    assert torch.equal(batch.support_images, again.support_images)
    assert torch.equal(batch.support_masks, again.support_masks)


def test_a_painted_slice_elsewhere_shows_the_target_and_not_another_scans_supervoxel_of_that_number(
    scans: list[AdaptationScan],
) -> None:
    drawn = sampler(scans, mix={"propagate": 1.0})
    keys = [drawn._elsewhere(drawn._query()) for _ in range(60)]
    assert any(key is not None for key in keys)
    assert all(isinstance(key, DrawnSlice) for key in keys if key is not None)


def test_a_mask_that_is_brought_lies_on_the_query_but_not_where_the_answer_is(scans: list[AdaptationScan]) -> None:
    drawn = sampler(scans)
    drawn.brings = True
    batch = drawn.batch(6, 1)
    assert batch.brought and batch.painted == 1
    torch.testing.assert_close(batch.support_images[:, -1], batch.query_images)
    brought, answers = batch.support_masks[:, -1].bool(), batch.query_masks.bool()
    both = (brought & answers).sum((1, 2)).float()
    overlap = 2 * both / (brought.sum((1, 2)) + answers.sum((1, 2)))
    assert 0.5 < overlap.mean() < 0.99


def test_a_trainer_carries_supervoxels_across_scans_where_the_configuration_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    cases = []
    for path in write_scans(tmp_path, 3):
        shown = Volume.read(path)
        Volume((shown.voxels > 0).astype(np.uint8), shown.geometry).write(tmp_path / f"body_{path.name}")
        about = {"id": path.stem, "group": "bodies", "modality": "MR", "targets": {"body": 1}, "split": "train"}
        cases.append(about | {"image": path.name, "labels": f"body_{path.name}"})
    (tmp_path / "cases.json").write_text(json.dumps({"groups": {"bodies": {}}, "cases": cases}), encoding="utf-8")
    seen: list[EpisodeBatch] = []
    forward = EpisodeLearner.forward
    monkeypatch.setattr(EpisodeLearner, "forward", lambda self, batch: seen.append(batch) or forward(self, batch))
    about = {"cases": str(tmp_path / "cases.json"), "output": str(tmp_path / "out"), "start": start, "label_share": 0.0}
    own = {"shippable": False, "supervoxels": "felzenszwalb", "supervoxel_size": 200, "across": "registration"}
    fast = {"steps": 2, "batch": 2, "synthetic_count": 0, "workers": 0}
    train(TrainingConfig(**about, **own, **fast, mix={"cross": 1.0}))
    assert len(seen) == 2 and all(batch.brought for batch in seen)
    for batch in seen:
        torch.testing.assert_close(batch.support_images[:, -1], batch.query_images)


def test_one_scan_alone_makes_episodes_too(scans: list[AdaptationScan]) -> None:
    batch = sampler(scans[:1]).batch(3, 0)
    assert batch.query_masks.shape == (3, 32, 32)


# -- what is kept


def test_weights_are_kept_only_where_the_mean_rises_and_no_kind_falls() -> None:
    begun = Score({"propagate": 0.5, "cross": 0.2})
    assert Score({"propagate": 0.5, "cross": 0.3}).beats(begun, begun)
    assert not Score({"propagate": 0.5, "cross": 0.2}).beats(begun, begun)
    assert not Score({"propagate": 0.3, "cross": 0.9}).beats(begun, begun)


def test_held_out_episodes_are_always_the_same_and_leave_random_numbers_alone(
    scans: list[AdaptationScan], start: str
) -> None:
    kinds = {kind: sampler(scans, mix={kind: 1.0}) for kind in ("propagate", "cross")}
    propagation = Propagation(scans, [scan.volume for scan in scans], 0)
    held, pipeline = HeldOut(kinds, propagation, settings()), load_pipeline(start, "cpu")
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first = held.score(pipeline)
    assert torch.equal(torch.rand(3), wanted)
    assert held.score(pipeline) == first and set(first.kinds) == {"propagate", "cross"}


def test_along_a_scan_weights_are_measured_by_the_code_that_segments(scans: list[AdaptationScan], start: str) -> None:
    """The same supervoxel, painted in a file, comes out with the same Dice."""
    from SDFSMISLib.inference import Segmenter

    segmenter = Segmenter(load_pipeline(start, "cpu"))
    held = scans[1]
    parts = np.asarray(held.volume.maps[0])
    value = np.bincount(parts[parts > 0]).argmax()
    one = replace(held.volume, maps=(np.where(parts == value, parts, 0),))
    propagation = Propagation(scans, [one], 0)
    (task,) = propagation.tasks
    (piece,) = task.support.slices
    assert piece.labels.sum() == max(np.count_nonzero(plane == value) for plane in parts)  # painted where it is largest
    mask = (parts == value).astype(np.uint8)
    scan = Volume(np.asarray(held.volume.image, dtype=np.float32), geometry(mask.shape))
    painted = Volume(np.where(np.arange(len(mask))[:, None, None] == piece.index, mask, 0), scan.geometry)
    found = SupportSet.from_labelmap(scan, painted, label=1, axis=0)
    support = SupportSet(tuple(replace(one, window=piece.window) for one in found.slices))
    wanted = sorted(task.masks)
    soft = segmenter.segment(scan, support, slices=wanted, window="minmax").probabilities[1][wanted] / 255
    expected = 2 * (soft * mask[wanted]).sum() / (soft.sum() + mask[wanted].sum())
    assert propagation.score(segmenter.pipeline, lambda: None) == pytest.approx(expected, abs=1e-6)


def test_supervoxels_on_too_few_slices_are_not_carried_along(scans: list[AdaptationScan]) -> None:
    flat = np.zeros_like(np.asarray(scans[0].volume.maps[0]))
    flat[5:7, 10:30, 10:30] = 1
    assert not Propagation(scans, [replace(scans[0].volume, maps=(flat,))], 0).tasks


def test_fewer_steps_take_a_lower_rate(adapted: tuple[Path, Any, list[str]]) -> None:
    about = json.loads((adapted[0] / "adaptation.json").read_text(encoding="utf-8"))
    steps = about["recipe"]["steps"]
    assert steps < adaptation.FULL_RATE
    assert about["recipe"]["rate"] == pytest.approx(adaptation_recipe.OURS["rate"] * steps / adaptation.FULL_RATE)


def test_the_recipe_is_the_trainers_and_large_networks_learn_as_in_the_paper(start: str, tmp_path: Path) -> None:
    pipeline = load_pipeline(start, "cpu")
    assert recipe(pipeline, start, tmp_path, torch.device("cpu"), 0).precision == "no"
    assert recipe(pipeline, start, tmp_path, torch.device("cuda"), 0).precision == "bf16"
    pipeline.vae.register_to_config(latent_channels=4)
    large = recipe(pipeline, start, tmp_path, torch.device("cpu"), 0)
    assert large.learned == ("unet", "translator") and large.losses == {"latent": 1.0} and large.rate == 1e-5


# -- the whole


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, start: str) -> tuple[Path, Any, list[str]]:
    """A finished adaptation: its folder, what came of it, and what it said on the way."""
    folder = tmp_path_factory.mktemp("adapted")
    said: list[str] = []
    files = write_scans(folder / "scans", 4)
    made = adapt(files, folder / "out", start, MINUTES, "cpu", lambda done, total, text: said.append(text))
    return folder / "out", made, said


def test_the_result_is_a_pipeline_folder_with_a_report_and_its_provenance(
    adapted: tuple[Path, Any, list[str]], start: str
) -> None:
    folder, made, said = adapted
    about = json.loads((folder / "adaptation.json").read_text(encoding="utf-8"))
    assert weights_digest(load_pipeline(folder, "cpu")) == about["weights"]
    assert about["start weights"] == weights_digest(load_pipeline(start, "cpu"))
    assert len(about["learned from"]) == 3 and len(about["measured on"]) == 1
    assert all(len(content) == 64 for content in about["learned from"])  # hashes, no names of files
    assert about["device"] == "cpu" and about["seconds"] > 0 and about["steps"] == made.steps >= 1
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Before and after" in page and page.count("data:image/png") == 4
    with Image.open(folder / "pictures" / "cross.png") as picture:
        assert picture.width == 5 * 32  # painted, brought, true, before, after
    assert not (folder / "work").exists()
    assert [text for text in said if text.startswith("Reading")] and any("Learning" in text for text in said)


def test_the_result_segments(adapted: tuple[Path, Any, list[str]]) -> None:
    from SDFSMISLib.inference import Segmenter
    from SDFSMISLib.support import SupportSet

    voxels = body(7)
    scan = Volume(voxels, geometry(voxels.shape))
    mask = np.zeros(voxels.shape, dtype=np.uint8)
    mask[10] = organ(voxels[10])
    support = SupportSet.from_labelmap(scan, Volume(mask, scan.geometry), label=1, slices=(10,))
    found = Segmenter.from_pretrained(adapted[0], "cpu").segment(scan, support)
    assert found.labelmap.voxels.shape == voxels.shape


def test_a_folder_that_holds_a_pipeline_is_not_written_over(adapted: tuple[Path, Any, list[str]], start: str) -> None:
    with pytest.raises(InputError, match="holds a pipeline already"):
        adapt([adapted[0]], adapted[0], start, MINUTES, "cpu")


def test_where_nothing_better_is_learned_the_weights_of_the_start_are_given_back(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Score, "beats", lambda *_: False)
    made = adapt(write_scans(tmp_path / "scans", 1), tmp_path / "out", start, MINUTES, "cpu")
    assert not made.improved and made.kept == made.start
    assert weights_digest(load_pipeline(tmp_path / "out", "cpu")) == weights_digest(load_pipeline(start, "cpu"))
    assert "given back unchanged" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("hopeful", [0.0, 0.3])
def test_learning_ends_where_it_only_gets_worse_once_its_rate_has_been_high(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch, hopeful: float
) -> None:
    monkeypatch.setattr(adaptation, "HOPEFUL", hopeful)
    monkeypatch.setattr(adaptation, "FEWEST_VALIDATIONS", 8)
    scores = iter([0.5, *np.linspace(0.4, 0.1, 40)])
    monkeypatch.setattr(HeldOut, "score", lambda *_: Score({"propagate": next(scores), "cross": 0.2}))
    made = adapt(write_scans(tmp_path / "scans", 2), tmp_path / "out", start, MINUTES, "cpu")
    about = json.loads((tmp_path / "out" / "adaptation.json").read_text(encoding="utf-8"))
    measured = len(about["held-out soft Dice"]) - 1
    assert not made.improved and (measured > adaptation.PATIENCE) == bool(hopeful)


def test_a_run_that_was_killed_goes_on_from_its_checkpoint_and_other_requests_do_not(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "MOST_VALIDATIONS", 4)
    files, output = write_scans(tmp_path / "scans", 2), tmp_path / "out"
    checkpoint = output / "work" / "segmentation.safetensors"
    steps: list[int] = []

    def until_power_is_lost(done: int, total: int, text: str) -> None:
        steps.append(done)
        if checkpoint.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(files, output, start, MINUTES, "cpu", until_power_is_lost)
    assert not (output / "model_index.json").exists()
    with pytest.raises(InputError, match="begun with other minutes"):
        adapt(files, output, start, 5, "cpu")
    learned: list[int] = []
    made = adapt(files, output, start, MINUTES, "cpu", lambda done, _, text: "Learn" in text and learned.append(done))
    assert learned[0] == steps[-1] and made.steps == learned[-1]  # the step that was under way is done again
    assert (output / "model_index.json").exists() and not (output / "work").exists()


def test_a_run_that_is_cancelled_at_any_moment_leaves_no_pipeline_and_goes_on(tmp_path: Path, start: str) -> None:
    files = write_scans(tmp_path / "scans", 1)
    for moment in ("Reading", "Measuring", "Learning"):
        said = [""]

        def cancel(said: list[str] = said, moment: str = moment) -> bool:
            return said[-1].startswith(moment)

        with pytest.raises(Cancelled):
            adapt(files, tmp_path / "out", start, MINUTES, "cpu", lambda *now, said=said: said.append(now[2]), cancel)
        assert not (tmp_path / "out" / "model_index.json").exists()
    made = adapt(files, tmp_path / "out", start, MINUTES, "cpu")
    assert made.folder == tmp_path / "out" and made.steps > 0


# -- bad input


def test_unreadable_scans_are_named_and_passed_over(tmp_path: Path, start: str) -> None:
    files = write_scans(tmp_path / "scans", 2)
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"broken\.nii\.gz"):
        made = adapt([*files, tmp_path / "scans" / "broken.nii.gz"], tmp_path / "out", start, MINUTES, "cpu")
    assert made.scans == 2 and len(made.skipped) == 1
    assert "broken.nii.gz" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_scans_of_which_none_can_be_used_are_refused(tmp_path: Path, start: str) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.warns(UserWarning), pytest.raises(InputError, match="None of the 1 scans can be used"):
        adapt([tmp_path / "broken.nii.gz"], tmp_path / "out", start, MINUTES, "cpu")


def test_no_scan_no_time_and_a_folder_of_something_else_are_refused(tmp_path: Path, start: str) -> None:
    scan = tmp_path / "scan.nii.gz"
    with pytest.raises(InputError, match="No scan was given"):
        adapt([], tmp_path / "out", start)
    with pytest.raises(InputError, match="must be above 0"):
        adapt([scan], tmp_path / "out", start, 0.0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="is not empty"):
        adapt([scan], tmp_path / "full", start)
    with pytest.raises(InputError, match="is a file"):
        adapt([scan], tmp_path / "full" / "letter.txt", start)


def test_the_command_says_what_came_of_it(tmp_path: Path, start: str) -> None:
    app = typer.Typer()
    app.command()(adapt_command)
    write_scans(tmp_path / "scans", 1)
    given = ["--scans", str(tmp_path / "scans"), "--output", str(tmp_path / "out"), "--model", start]
    done = CliRunner().invoke(app, [*given, "--minutes", str(MINUTES), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "report.html" in done.output and "soft Dice" in done.output
    shutil.rmtree(tmp_path / "out")
