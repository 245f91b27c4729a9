"""Training: episodes are reproducible, and scans are read once."""

import json
from dataclasses import replace
from functools import cache
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from SDFSMISLib.cohort.cases import read_manifest
from SDFSMISLib.errors import InputError
from SDFSMISLib.images.geometry import Geometry
from SDFSMISLib.images.volume import Volume
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.slices import propagation_stride
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.episodes import EpisodeSampler
from SDFSMISLib.training.learner import EpisodeLearner
from SDFSMISLib.training.synthesis import synthetic_labels
from SDFSMISLib.training.volumes import TrainingVolume, label_volumes, load_training_volumes, synthetic_volumes
from training_examples import PLAIN, scan_volume, write_manifest

PLAIN_CONFIG = TrainingConfig(cases="", output="")


@cache
def synthetic(count: int) -> list[TrainingVolume]:
    return synthetic_volumes(count, 0)


def sampler(kind: str) -> EpisodeSampler:
    volumes = [scan_volume("a", 0), scan_volume("b", 5)] + (synthetic(2) if kind != "cross" else [])
    mix = {kind: 1.0}
    config = TrainingConfig(cases="", output="", seed=7, mix=mix, synthetic_share=0.5, label_share=0.5, rollout=0.5)
    return EpisodeSampler(volumes, 32, config)


@pytest.mark.parametrize("kind", ["propagate", "independent", "cross"])
def test_episodes_have_their_shapes_and_ranges(kind):
    drawn = sampler(kind)
    for number in range(5):
        batch = drawn.batch(3, number)
        shots = batch.support_images.shape[1]
        assert batch.support_images.shape == batch.support_masks.shape == (3, shots, 32, 32)
        assert batch.query_images.shape == batch.query_masks.shape == (3, 32, 32)
        assert 1 <= batch.painted <= shots
        assert batch.support_images.abs().max() <= 1 and batch.query_images.abs().max() <= 1
        assert set(batch.support_masks.unique().tolist()) <= {0.0, 1.0}
        assert (batch.support_masks[:, 0].sum((1, 2)) > 0).all()


@pytest.mark.parametrize("kind", ["propagate", "independent", "cross"])
def test_a_batch_depends_on_seed_and_number_only(kind):
    drawn = sampler(kind)
    drawn.batch(2, 0)
    again, fresh = drawn.batch(2, 5), sampler(kind).batch(2, 5)
    assert torch.equal(again.support_images, fresh.support_images) and torch.equal(again.query_masks, fresh.query_masks)


@pytest.mark.parametrize("kind", ["propagate", "independent", "cross"])
def test_what_was_drawn_for_a_batch_can_be_handed_to_another_process(kind):
    drawn = sampler(kind).drawn(3, 4)
    content = ForkingPickler.dumps(drawn)
    assert len(content) < 100_000, "it holds no volumes"
    one, other = sampler(kind).rendered(ForkingPickler.loads(content)), sampler(kind).batch(3, 4)
    assert torch.equal(one.query_images, other.query_images)
    assert torch.equal(one.support_masks, other.support_masks)


def test_labels_are_counted_ahead_as_when_they_are_needed():
    drawn, ahead = sampler("propagate"), sampler("propagate")
    ahead.count_slices()
    volume = ahead.store.volumes[0]
    counts = ahead._counts[volume.name, 0, 1]
    assert np.array_equal(counts, drawn._slice_counts(volume, 0, 1))
    assert counts[:, 1].tolist() == (volume.maps[0] == 1).sum((0, 2)).tolist() and counts[:, 1].any()


def test_a_propagate_episode_holds_the_neighbour_beside_the_painted_slice():
    batch = sampler("propagate").batch(2, 0)
    assert batch.support_images.shape[1] == batch.painted + 1


def test_known_lines_tell_the_true_mask_and_nothing_else():
    config = TrainingConfig(cases="", output="", seed=3, mix={"propagate": 1.0}, synthetic_share=0.5, known=1.0)
    drawn = EpisodeSampler([scan_volume("a", 0), *synthetic(2)], 64, config)
    batches = [drawn.batch(4, number) for number in range(6)]
    known, truth = (torch.cat([getattr(b, name) for b in batches]) for name in ("known", "query_masks"))
    assert known.abs().max() <= 1
    shares = (known != 0).flatten(1).float().mean(1)
    assert (shares > 0).float().mean() > 0.8, "most queries have lines"
    assert shares.median() < 0.3, "lines are thin"
    right = (known > 0) == (truth > 0)
    assert right[known.abs() > 0.9].float().mean() > 0.97, "but for pixels on borders"


def test_queries_without_painted_slices_of_other_views_are_told_nothing():
    config = TrainingConfig(cases="", output="", mix={"propagate": 1.0}, synthetic_share=0.5, known=0.0)
    assert not EpisodeSampler(synthetic(1), 32, config).batch(3, 0).known.any()
    assert sampler("independent").batch(2, 0).known is None


AHEAD_CONFIG = TrainingConfig(
    cases="", output="", seed=3, start="built-in", mix={"propagate": 1.0}, synthetic_share=0.5, rollout=0.5, ahead=0.8
)


def test_the_slices_ahead_lie_behind_the_query_on_its_way_and_are_absent_behind_the_scan():
    drawn = EpisodeSampler([scan_volume("a", 0), *synthetic(1)], 32, AHEAD_CONFIG)
    episodes = [one for _ in range(300) for one in drawn._propagate(1, True)]
    shown, missing, left_out = 0, 0, 0
    for one in episodes:
        _, _, (previous, crop), (query, _), *ahead = one.views
        way = np.sign(query.index - previous.index)
        stride = max(abs(query.index - previous.index), propagation_stride(query.volume.spacing[query.axis]))
        left_out += not any(one.is_there)
        for begin, pair, there in ((query, ahead[:2], one.is_there[:2]), (previous, ahead[2:], one.is_there[2:])):
            for number, ((target, seen), is_there) in enumerate(zip(pair, there, strict=True)):
                away = (target.index - begin.index) * way
                assert seen == crop and target.thick == query.thick
                if away:
                    assert away >= stride * (number + 1), "as far as the track's next slices"
                    shown += is_there
                else:
                    assert not is_there
                    missing += 1
    assert shown > 4 * missing > 0 and 0.1 < left_out / len(episodes) < 0.3


def test_a_batch_shows_the_slices_ahead_of_queries_and_of_predicted_neighbours():
    drawn = EpisodeSampler([scan_volume("a", 0), *synthetic(1)], 32, AHEAD_CONFIG)
    batches = [drawn.batch(3, number) for number in range(12)]
    rolled = [batch for batch in batches if batch.before is not None]
    assert 0 < len(rolled) < 12
    for one in [*batches, *(batch.before for batch in rolled)]:
        assert one.ahead.shape == (3, 2, 32, 32) and one.is_there.shape == (3, 2)
        assert one.ahead.abs().max() <= 1
    batch, query = batches[0], batches[0].query_images
    assert (batch.ahead[:, 0] - query).abs().mean() < (batch.ahead[:, 0] - query.flip(0)).abs().mean(), "one look"
    empty = torch.cat([batch.is_there[~batch.query_masks.flatten(1).any(1)] for batch in batches])
    assert 0 < len(empty) < 24 and empty.any(), "ends are seen from behind too"
    plain = sampler("propagate").batch(2, 0)
    assert plain.ahead is None and plain.is_there is None
    assert (
        EpisodeSampler(synthetic(1), 32, AHEAD_CONFIG.model_copy(update={"mix": {"independent": 1.0}}))
        .batch(2, 0)
        .ahead
        is None
    )


def test_networks_learn_from_the_slices_ahead():
    pipe = new_built_in(0, Size(resolution=32, channels=(16, 16), ahead=True))
    batch = EpisodeSampler([scan_volume("a", 0)], 32, AHEAD_CONFIG).batch(4, 1)
    EpisodeLearner(pipe, AHEAD_CONFIG)(batch).loss.backward()
    assert pipe.unet.conv_in_ahead.weight.grad.abs().max() > 0


def test_groups_are_drawn_by_their_weights():
    volumes = [scan_volume("a", 0), replace(scan_volume("b", 5), group="cubes [('ball', 1)]")]
    config = TrainingConfig(cases="", output="", synthetic_share=0, group_weights={"cubes": 0.0})
    drawn = EpisodeSampler(volumes, 32, config)
    assert {drawn._target().volume.name for _ in range(20)} == {"a"}


def test_a_label_map_without_image_is_drawn_with_a_new_look_each_time(tmp_path):
    shape = (24, 40, 40)
    labels = np.zeros(shape, dtype=np.uint16)
    labels[4:20, 8:30, 8:30] = 700
    labels[8:16, 12:24, 12:24] = 900
    grid = Geometry(shape, (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    Volume(labels, grid).write(tmp_path / "labels.nii.gz")
    entry = {"id": "maps/1", "group": "maps", "labels": "labels.nii.gz", "targets": {"cube": 700, "core": 900}}
    content = {"groups": {"maps": {"may_train_shipped_weights": True}}, "cases": [entry]}
    (tmp_path / "maps.json").write_text(json.dumps(content))
    (volume,) = label_volumes(tmp_path / "maps.json", PLAIN_CONFIG)
    assert volume.image is None and np.unique(volume.maps[1]).tolist() == [0, 1, 2]
    assert ((volume.maps[1] == 2) == (labels == 900)).all()
    looks = [set(np.unique(volume.maps[0][volume.maps[1] == one])) for one in range(3)]
    assert len(looks[0]) > 1, "what surrounds sparse labels is not of one grey"
    assert not looks[0] & looks[1] and not looks[1] & looks[2]
    config = TrainingConfig(cases="", output="", mix={"propagate": 1.0}, synthetic_share=1)
    drawn = EpisodeSampler([volume], 32, config)
    assert not torch.equal(drawn.batch(1, 0).query_images, drawn.batch(1, 1).query_images)
    for entry["split"], entry["labels"] in (("test", "labels.nii.gz"), ("train", "empty.nii.gz")):
        (tmp_path / "maps.json").write_text(json.dumps(content))
        if entry["split"] == "test":
            assert not label_volumes(tmp_path / "maps.json", PLAIN_CONFIG)
            Volume(labels * 0, grid).write(tmp_path / "empty.nii.gz")
        else:
            with pytest.raises(InputError, match="is empty"):
                label_volumes(tmp_path / "maps.json", PLAIN_CONFIG)
    del entry["split"]
    (tmp_path / "maps.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no field 'split'"):
        read_manifest(tmp_path / "maps.json")


def test_a_batch_holds_one_to_five_painted_slices():
    drawn = sampler("independent")
    shots = [drawn.batch(1, number).support_images.shape[1] for number in range(40)]
    assert set(shots) == {1, 2, 3, 4, 5}


def test_targets_of_three_thousandths_of_the_image_appear():
    """And all sizes above."""
    config = TrainingConfig(cases="", output="", seed=1, mix={"independent": 1.0})
    drawn = EpisodeSampler(synthetic(3), 96, config)
    shares = torch.cat([drawn.batch(4, number).query_masks.mean((1, 2)) for number in range(20)])
    present = shares[shares > 0]
    assert present.min() < 0.003 and present.max() > 0.1


def test_swapped_episodes_ask_for_two_targets_of_the_same_slices():
    config = TrainingConfig(cases="", output="", mix={"independent": 1.0}, swapped=1.0)
    drawn = EpisodeSampler(synthetic(2), 32, config)
    pairs = 0
    for number in range(8):
        batch = drawn.batch(6, number, late=True)
        for one in range(5):
            same = torch.equal(batch.query_images[one], batch.query_images[one + 1])
            if same and torch.equal(batch.support_images[one], batch.support_images[one + 1]):
                assert not torch.equal(batch.support_masks[one, 0], batch.support_masks[one + 1, 0])
                pairs += 1
    assert pairs >= 8


def test_twins_show_the_same_slices_and_each_a_painted_target():
    config = TrainingConfig(cases="", output="", mix={"independent": 1.0}, swapped=1.0)
    drawn = EpisodeSampler(synthetic(2), 64, config)
    pairs = 0
    for number in range(12):
        batch = drawn.batch(8, number, late=True)
        assert (batch.support_masks[:, 0].sum((1, 2)) >= 8).all()
        images = torch.cat([batch.support_images, batch.query_images[:, None]], dim=1)
        same_query = [torch.equal(images[row, -1], images[row - 1, -1]) for row in range(1, 8)]
        same = [torch.equal(images[row], images[row - 1]) for row in range(1, 8)]
        assert same == same_query
        pairs += sum(same)
    assert pairs >= 20


def test_volumes_of_one_name_and_labels_that_are_too_large_are_refused():
    with pytest.raises(InputError, match="Two volumes are named 'a'"):
        EpisodeSampler([scan_volume("a", 0), scan_volume("a", 5)], 32, PLAIN_CONFIG)
    volume = scan_volume("a", 0)
    with pytest.raises(InputError, match="label 40000"):
        EpisodeSampler([replace(volume, maps=(volume.maps[0] * np.uint16(40000),))], 32, PLAIN_CONFIG)
    with pytest.raises(InputError, match="0 for every group"):
        EpisodeSampler([volume], 32, PLAIN_CONFIG.model_copy(update={"group_weights": {"balls": 0.0}}))


def test_no_targets_are_swapped_early():
    config = TrainingConfig(cases="", output="", mix={"independent": 1.0}, swapped=1.0)
    batch = EpisodeSampler(synthetic(2), 32, config).batch(6, 0)
    assert all(not torch.equal(batch.query_images[i], batch.query_images[i + 1]) for i in range(5))


def test_some_queries_lack_the_target():
    drawn = sampler("propagate")
    empty = [float(m.sum()) == 0 for n in range(12) for m in drawn.batch(4, n).query_masks]
    assert 0 < sum(empty) < len(empty) / 2


def test_synthetic_labels_have_many_structures():
    labels = synthetic_labels(np.random.default_rng(0), 32)
    assert labels.shape == (32, 32, 32) and len(np.unique(labels)) > 4


@pytest.fixture
def manifest(tmp_path):
    return write_manifest(tmp_path)


def test_only_training_cases_are_read(manifest):
    volumes = load_training_volumes(manifest, manifest.parent / "cache", PLAIN_CONFIG)
    assert [volume.name for volume in volumes] == ["first"]
    assert volumes[0].maps[1].max() > 10  # supervoxels


def test_a_group_whose_terms_forbid_it_is_left_out(manifest):
    content = json.loads(manifest.read_text())
    content["groups"]["balls"]["may_train_shipped_weights"] = False
    manifest.write_text(json.dumps(content))
    with pytest.raises(InputError, match="no case"):
        load_training_volumes(manifest, manifest.parent / "cache", PLAIN_CONFIG)


def test_supervoxels_are_kept(manifest):
    first = load_training_volumes(manifest, manifest.parent / "cache", PLAIN_CONFIG)[0]
    kept = {path: path.stat().st_mtime_ns for path in (manifest.parent / "cache").iterdir()}
    again = load_training_volumes(manifest, manifest.parent / "cache", PLAIN_CONFIG)[0]
    assert all(np.array_equal(a, b) for a, b in zip(first.maps, again.maps, strict=True))
    assert kept == {path: path.stat().st_mtime_ns for path in (manifest.parent / "cache").iterdir()}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("not json", "cannot be read"),
        ('{"cases": "", "output": "x", "stepps": 3}', "stepps"),
        ('{"cases": ""}', "output"),
    ],
)
def test_a_bad_configuration_is_refused_in_a_sentence(tmp_path, content, says):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=says):
        TrainingConfig.read(path)


def test_a_missing_or_incomplete_manifest_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(InputError, match="Cannot read the manifest"):
        load_training_volumes(tmp_path / "nowhere.json", tmp_path, PLAIN_CONFIG)
    (tmp_path / "cases.json").write_text('{"cases": []}')
    with pytest.raises(InputError, match="groups"):
        load_training_volumes(tmp_path / "cases.json", tmp_path, PLAIN_CONFIG)


def test_a_scan_without_any_target_is_refused(manifest):
    content = json.loads(manifest.read_text())
    content["cases"][0]["targets"] = {"ball": 7}
    manifest.write_text(json.dumps(content))
    with pytest.raises(InputError, match="none of the targets"):
        load_training_volumes(manifest, manifest.parent / "cache", PLAIN_CONFIG)


def test_targets_that_are_all_too_small_end_in_a_sentence_and_not_in_an_endless_search():
    speck = np.zeros((24, 40, 40), dtype=np.uint16)
    speck[12, 20, 20:24] = 1
    image = np.full(speck.shape, 0.1, dtype=np.float16)
    scan = TrainingVolume("a", image, (speck,), True, (2.0, 1.0, 1.0), (0,), PLAIN, "specks")
    with pytest.raises(InputError, match="larger targets"):
        EpisodeSampler([scan], 32, PLAIN_CONFIG).batch(1, 0)
