"""Benchmark runs from the command line: tests without training, trainings without labels, runs that were killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import golden
from benchmark_examples import (
    ABDOMEN,
    PLACES,
    dice_of,
    few_organs,
    ran,
    scans_of,
    spleen_alone,
    write_config,
    write_scans,
    write_weights,
)
from SDFSMISLib.benchmark import DATA_SETS, FoldResult, Model, Plan, TrainingJob, fold_of, measure_folds, train_folds
from SDFSMISLib.benchmark.tasks import fold_task, official_masks, official_method, to_bytes
from SDFSMISLib.cohort.cases import Case, LabelledScan, load_case
from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.baselines import run_method
from SDFSMISLib.images.volume import Geometry, Volume
from SDFSMISLib.inference import Segmenter
from SDFSMISLib.inference.network_images import as_rgb
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.model.convert import convert_stable_diffusion
from SDFSMISLib.model.loading import load_pipeline
from SDFSMISLib.model.pipeline import SDFSMISPipeline
from SDFSMISLib.training import CONFIGURATIONS
from small_scans import BrightPipeline
from training_examples import kill_before_it_saves_again


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny")


def bright(name: str) -> Segmenter:
    """Answers with all organs at once: they are what is bright."""
    return Segmenter(BrightPipeline(32), name)  # type: ignore[arg-type]


def measured(plan: Plan) -> list[FoldResult]:
    return measure_folds(plan, Model("bright", "bright", "minmax", bright))


# -- tests


def test_every_scan_of_a_fold_is_tested_on_every_organ_and_counted_by_hand(manifest: Path, tmp_path: Path) -> None:
    plan = Plan(ABDOMEN, scans_of(manifest), tmp_path, folds=(0,))
    (result,) = measured(plan)
    names = [case.id for case in plan.cases[:4]]
    assert [(score.case, score.organ) for score in result.scores] == [(n, o) for n in names for o in ABDOMEN.organs]
    for score in result.scores:
        slices, rows, columns = PLACES[score.organ]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        assert score.slices == slices.stop - slices.start and score.held == score.slices * area
        assert score.both == score.held < score.found  # all that is bright on the organ's slices, and no other slice
    supports = {score.case: score.support for score in result.scores}
    assert supports == {names[0]: names[2], names[1]: names[2], names[2]: names[3], names[3]: names[2]}
    assert {score.case for score in result.scores if score.own} == set(names[:3])
    assert {score.case for score in result.scores if score.query} == {names[0], names[1], names[3]}


def test_results_are_a_file_for_each_fold_and_number_of_shots(manifest: Path, tmp_path: Path) -> None:
    measured(Plan(ABDOMEN, scans_of(manifest), tmp_path, folds=(0, 4), shots=(1, 5)))
    files = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert files == [f"fold{fold}-all-shots{shots}.json" for fold in (0, 4) for shots in (1, 5)]
    content = json.loads((tmp_path / "results" / files[0]).read_text(encoding="utf-8"))
    assert content["about"]["data"] == "chaos_t2" and content["about"]["trained_on"] == "none"
    assert content["dice"].keys() == {"own", "queries", "pooled"}
    assert content["dice"]["own"].keys() == {*ABDOMEN.organs, "mean"}


def test_the_official_protocol_tests_no_support_scan(
    manifest: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spleen_alone(monkeypatch)
    ran(*run_words(manifest, "none", tmp_path, "--model", weights, "--protocol", "official", "--fold", "1"))
    rows = dice_of(tmp_path)
    assert {case.rpartition("_")[2] for _, case, _ in rows} == {"4", "5", "7"}
    assert all(found for _, found, _, _ in rows.values())  # a share of the maximum always finds something


def test_a_run_that_was_stopped_makes_only_the_tests_that_are_missing(manifest: Path, tmp_path: Path) -> None:
    plan = Plan(ABDOMEN, scans_of(manifest), tmp_path, folds=(0,))
    asked: list[str] = []

    class Stopped(Exception):
        pass

    def progress(done: int, total: int, text: str) -> None:
        asked.append(text)
        if len(asked) == 7:
            raise Stopped

    with pytest.raises(Stopped):
        measure_folds(plan, Model("bright", "bright", "minmax", bright), progress=progress)
    (path,) = (tmp_path / "results").iterdir()
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert len(kept["scores"]) == 6
    measured(plan)
    assert json.loads(path.read_text(encoding="utf-8"))["scores"][:6] == kept["scores"]  # seconds too
    assert len(dice_of(tmp_path)) == 16


def test_results_of_another_run_are_not_mixed(manifest: Path, tmp_path: Path) -> None:
    measured(Plan(ABDOMEN, scans_of(manifest), tmp_path, folds=(0,)))
    with pytest.raises(InputError, match="with model 'bright', and 'other' was asked for; name another output folder"):
        measure_folds(
            Plan(ABDOMEN, scans_of(manifest), tmp_path, folds=(0,)), Model("other", "bright", "minmax", bright)
        )
    next((tmp_path / "results").iterdir()).write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="Cannot read the benchmark results"):
        measured(Plan(ABDOMEN, scans_of(manifest), tmp_path, folds=(0,)))


def run_words(manifest: Path, config: object, output: Path, *more: object) -> list[object]:
    return [
        *("run", "--data", "chaos_t2", "--cases", manifest, "--config", config, "--output", output, "--device", "cpu"),
        *more,
    ]


def test_weights_as_they_are_are_tested_and_the_table_is_printed(
    manifest: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spleen_alone(monkeypatch)
    ran(*run_words(manifest, "none", tmp_path, "--model", weights, "--fold", "2", "--shots", "1", "2"))
    out = capsys.readouterr().out
    assert "## Abd-MRI, Setting I: Dice, %" in out and "fold 2 only; weights as they are" in out
    assert "tiny, 2 shots" in out
    assert len(dice_of(tmp_path)) == 4


# -- what goes together


def test_a_plan_that_cannot_be_is_refused(manifest: Path, tmp_path: Path) -> None:
    cases = scans_of(manifest)
    with pytest.raises(InputError, match="cmr has no Setting II"):
        Plan(DATA_SETS["cmr"], cases, tmp_path, setting=2)
    with pytest.raises(InputError, match="leaves out next to nothing"):
        Plan(ABDOMEN, cases, tmp_path, setting=2, protocol="official")
    with pytest.raises(InputError, match="have not the same organs"):
        Plan(ABDOMEN, cases, tmp_path, train_on=(DATA_SETS["cmr"], cases))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--fold", "7"], "The fold '7' was given; accepted are 0 to 4"),
        (["--without", "attention"], "no ablation 'attention'; there are vtct, query-enhancement, support-values"),
        (["--without", "dice"], "Without training there is no loss 'dice' to leave out"),
        (["--data", "sabs"], "no group 'sabs'"),
    ],
)
def test_options_that_mean_nothing_are_refused(manifest: Path, tmp_path: Path, words: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ran(*run_words(manifest, "none", tmp_path), *words)


def test_a_configuration_that_has_no_loss_left_is_refused(manifest: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, losses={"latent": 1.0})
    with pytest.raises(InputError, match="no loss left"):
        ran(*run_words(manifest, config, tmp_path / "out", "--without", "latent"))
    with pytest.raises(InputError, match="has no loss 'dice' to leave out; it has latent"):
        ran(*run_words(manifest, config, tmp_path / "out", "--without", "dice"))


# -- trainings


def test_each_fold_is_trained_on_the_others_scans_and_setting_two_on_each_group(manifest: Path, tmp_path: Path) -> None:
    jobs: list[TrainingJob] = []

    def trainer(job: TrainingJob) -> Path:
        jobs.append(job)
        return job.output / "pipeline"

    cases = scans_of(manifest)
    train_folds(Plan(ABDOMEN, cases, tmp_path, folds=(0, 4)), trainer)
    assert [job.output.name for job in jobs] == ["fold0-all", "fold4-all"]
    assert [case.id for case in jobs[0].cases] == [case.id for case in cases[4:]]
    assert [case.id for case in jobs[1].cases] == [case.id for case in cases[1:12]]
    jobs.clear()
    folders = train_folds(Plan(ABDOMEN, cases, tmp_path, setting=2, folds=(1,)), trainer)
    assert [job.training.hidden for job in jobs] == [("liver", "spleen"), ("right kidney", "left kidney")]
    assert folders == {
        (1, "upper"): tmp_path / "training" / "fold1-upper" / "pipeline",
        (1, "lower"): tmp_path / "training" / "fold1-lower" / "pipeline",
    }


def test_across_data_sets_one_training_on_all_scans_serves_all_folds(tmp_path: Path) -> None:
    sabs = DATA_SETS["sabs"]
    ours, theirs = write_scans(tmp_path / "mr"), write_scans(tmp_path / "ct", sabs)
    plan = Plan(ABDOMEN, scans_of(ours), tmp_path, train_on=(sabs, scans_of(theirs, sabs)))
    jobs: list[TrainingJob] = []
    folders = train_folds(plan, lambda job: jobs.append(job) or job.output / "pipeline")
    assert [job.output.name for job in jobs] == ["all-of-sabs-all"] and len(set(folders.values())) == 1
    assert [case.id for case in jobs[0].cases] == [case.id for case in scans_of(theirs, sabs)]


@pytest.fixture(scope="module")
def finished(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The folder of a run that trained two folds and tested them, and its configuration."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        spleen_alone(patch)
        config = write_config(folder, steps=2, save_every=1)
        ran(*run_words(manifest, config, folder / "out", "--fold", "0", "1"))
        yield folder / "out", config


def with_supervoxels(finished: tuple[Path, Path], output: Path) -> Path:
    """An output folder that begins with the supervoxels of another run over the same scans, so that they are not made
    again."""
    shutil.copytree(finished[0] / "training-set", output / "training-set")
    return output


def test_a_run_trains_without_labels_and_tests_what_it_trained(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    few_organs(monkeypatch, "left kidney", "spleen")
    monkeypatch.setattr("SDFSMISLib.training.unlabelled_episodes.MAX_PARTNERS", 1)  # to be fast
    monkeypatch.setattr("SDFSMISLib.training.unlabelled_episodes.PROBES", 4)
    config = write_config(tmp_path, mix={"independent": 0.5, "propagate": 0.5, "cross": 0.5})
    ran(*run_words(manifest, config, output, "--fold", "0", "--setting", "2"))
    for group, organs in DATA_SETS["chaos_t2"].excluded_together.items():
        folder = output / "training" / f"fold0-{group}"
        seen = json.loads((folder / "cases.json").read_text(encoding="utf-8"))["cases"]
        assert all(case["targets"] == {"body": 1} for case in seen) and len(seen) == 11
        kept = json.loads((folder / "configuration.json").read_text(encoding="utf-8"))
        assert kept["label_share"] == 0 and kept["across"] == "registration" and not kept["shippable"]
        (path,) = (output / "results").glob(f"*-{group}-*.json")
        content = json.loads(path.read_text(encoding="utf-8"))
        assert {row["organ"] for row in content["scores"]} == set(organs)
        assert content["about"]["weights"] == Segmenter.from_pretrained(folder / "pipeline", "cpu").weights
        assert content["about"]["trained_on"] == "chaos_t2"


def test_a_run_across_data_sets_without_two_parts_goes_from_the_command_line(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spleen_alone(monkeypatch)
    other = write_scans(tmp_path / "ct", DATA_SETS["sabs"])
    config = write_config(tmp_path, steps=1, average=0.5, decoded=False)
    words = run_words(manifest, config, tmp_path / "out", "--fold", "0", "--without", "vtct", "support-values")
    ran(*words, "--cases", other, "--train-on", "sabs")
    (path,) = (tmp_path / "out" / "results").iterdir()
    assert json.loads(path.read_text(encoding="utf-8"))["about"]["trained_on"] == "sabs"
    trained = load_pipeline(tmp_path / "out" / "training" / "all-of-sabs-all" / "pipeline", "cpu")
    assert list(trained.config.without) == ["translator", "bank"]
    begun = new_built_in(0, Size(resolution=32, channels=(16, 16)))
    for key, value in begun.translator.state_dict().items():
        assert torch.equal(value, trained.translator.state_dict()[key]), key  # nothing taught it


def test_a_folder_of_another_configuration_is_refused(
    manifest: Path, finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spleen_alone(monkeypatch)
    with pytest.raises(InputError, match="holds a training by another configuration; name another output folder"):
        ran(*run_words(manifest, write_config(tmp_path, steps=3), finished[0], "--fold", "0"))


def test_a_run_that_was_killed_in_its_second_training_goes_on_to_the_same_weights_and_results(
    manifest: Path, finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spleen_alone(monkeypatch)
    whole, config = finished
    with_supervoxels(finished, tmp_path)
    words = [str(word) for word in run_words(manifest, config, tmp_path, "--fold", "0", "1")]
    first, second = (tmp_path / "training" / fold for fold in ("fold0-all", "fold1-all"))
    kill_before_it_saves_again(second / "segmentation.safetensors", benchmark_of, words)
    assert not (second / "pipeline").exists()
    made = (first / "pipeline" / "model_index.json").stat().st_mtime_ns
    ran(*words)
    assert (first / "pipeline" / "model_index.json").stat().st_mtime_ns == made  # what was done is not done again
    assert dice_of(tmp_path) == dice_of(whole)
    for folder in (first, second):
        one, other = (load_pipeline(run / "pipeline", "cpu") for run in (folder, whole / "training" / folder.name))
        for name, network in one.components.items():
            for key, value in network.state_dict().items():
                assert torch.equal(value, getattr(other, name).state_dict()[key]), (folder.name, name, key)


def benchmark_of(words: list[str]) -> None:
    """As `sdfsmis benchmark` in a process of its own."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # what a new process would not have
    ran(*words)


def test_two_processes_train_one_set_of_weights_and_one_of_them_tests(
    manifest: Path, finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spleen_alone(monkeypatch)
    from accelerate import debug_launcher

    stages = {"autoencoder_steps": 1, "denoising_steps": 1, "steps": 1, "accumulate": 2, "precision": "bf16"}
    config = write_config(tmp_path, **stages, synthetic_count=1, on_device=True)
    output = with_supervoxels(finished, tmp_path / "out")
    words = [str(word) for word in run_words(manifest, config, output, "--fold", "0")]
    debug_launcher(benchmark_of, (words,), num_processes=2)
    assert len(dice_of(output)) == 4
    training = output / "training" / "fold0-all"
    log = (training / "log.jsonl").read_text(encoding="utf-8")
    assert log.count("\n") == 3  # one for each stage, by one process
    for network in load_pipeline(training / "pipeline", "cpu").components.values():
        assert all(torch.isfinite(value).all() for value in network.state_dict().values())


# -- the paper's own


def write_paper(folder: Path) -> tuple[Path, Path]:
    """Tiny Stable Diffusion and DINOv2 folders, converted; and the paper's configuration with fewer steps."""
    golden.write_stable_diffusion(folder / "sd")
    golden.write_dinov2(folder / "dinov2", "dinov2_518")
    start = convert_stable_diffusion(folder / "sd", folder / "dinov2", folder / "sd-fsmis", resolution=64)
    settings = json.loads(CONFIGURATIONS["paper"].read_text(encoding="utf-8"))
    path = folder / "paper.json"
    path.write_text(json.dumps(settings | {"steps": 2, "workers": 0, "checkpointing": True}), encoding="utf-8")
    return path, start


def test_the_paper_s_configuration_runs_from_local_weight_folders(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spleen_alone(monkeypatch)
    config, start = write_paper(tmp_path)
    ran(*run_words(manifest, config, tmp_path / "out", "--model", start, "--fold", "3", "--shots", "5"))
    before = load_pipeline(start, "cpu").components
    after = load_pipeline(tmp_path / "out" / "training" / "fold3-all" / "pipeline", "cpu").components
    for name, network in before.items():
        same = all(torch.equal(x, after[name].state_dict()[key]) for key, x in network.state_dict().items())
        assert same == (name in ("vae", "image_encoder")), name
    assert (tmp_path / "out" / "training" / "fold3-all" / "pictures" / "step_000002.png").exists()
    (path,) = (tmp_path / "out" / "results").iterdir()
    content = json.loads(path.read_text(encoding="utf-8"))
    about = content["about"]
    assert about["model"] == "paper" and about["configuration"]["supervoxels"] == "felzenszwalb"
    assert about["shots"] == 5 and len(content["scores"]) == 4


# -- the official code's way to masks


def official_masks_of(pipeline: SDFSMISPipeline, cases: tuple[Case, ...], turned: bool) -> np.ndarray:
    """What it finds of the liver of one scan, whose files lie ``turned`` head over heels or not."""

    def load(case: Case) -> LabelledScan:
        labelled = load_case(case)
        if not turned:
            return labelled
        scan = labelled.scan.geometry
        direction = tuple(np.array(scan.direction) * np.tile((1, -1, 1), 3))
        geometry = Geometry(scan.shape, scan.spacing, scan.origin, direction)
        volumes = (
            Volume(np.ascontiguousarray(one.voxels[:, ::-1]), geometry) for one in (labelled.scan, labelled.labelmap)
        )
        return LabelledScan(case, *volumes)

    task = fold_task(fold_of(cases, 0), cases[0], "liver", load, 1, "official", "minmax")
    assert task is not None and [len(part.support.slices) for part in task.parts] == [3, 3, 3]
    mask = run_method(official_method(pipeline), task)
    assert mask is not None
    return mask[:, ::-1] if turned else mask


def test_official_masks_are_those_of_whole_slices_and_of_no_file_order(manifest: Path, weights: Path) -> None:
    pipeline, cases = load_pipeline(weights, "cpu"), scans_of(manifest)
    found = official_masks_of(pipeline, cases, turned=False)
    assert np.array_equal(found, official_masks_of(pipeline, cases, turned=True))
    query, support = load_case(cases[0]), load_case(cases[2])
    images = [torch.from_numpy(one.scan.window("minmax").normalize(one.scan.voxels)) for one in (query, support)]
    shown, painted = [2, 3], [3, 5, 7]  # the first chunk, and the slices that are painted for all of them
    masks = torch.from_numpy(support.mask("liver")[painted].astype(np.float32))
    maps = pipeline(as_rgb(images[1][painted]), masks, as_rgb(images[0][shown])).maps
    assert np.array_equal(found[shown], official_masks(to_bytes(maps.numpy())).masks)
    assert not found[~query.mask("liver").any(axis=(1, 2))].any()
