"""Configurations: ours can be read, others are refused in a sentence, and the command takes both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from SDFSMISLib.cli.app import main
from SDFSMISLib.errors import InputError
from SDFSMISLib.model.built_in import Size, new_built_in
from SDFSMISLib.training import CONFIGURATIONS
from SDFSMISLib.training.config import TrainingConfig

PLAIN = {"cases": "", "output": "x"}


def written(folder: Path, **content: object) -> Path:
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "config.json"


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS.values()), ids=lambda path: path.stem)
def test_every_configuration_of_ours_can_be_read(path: Path) -> None:
    by_path, by_name = TrainingConfig.read(path), TrainingConfig.read(Path(path.stem))
    assert by_path == by_name
    assert not Path(by_path.cases).is_absolute() and not Path(by_path.output).is_absolute()


def test_there_are_the_papers_and_those_of_the_built_in_weights() -> None:
    assert set(CONFIGURATIONS) >= {"built_in", "built_in_gpu", "paper"}


def test_the_papers_settings_are_the_official_ones() -> None:
    paper = TrainingConfig.read(Path("paper"))
    assert (paper.rate, paper.translator_rate, paper.schedule, paper.warmup) == (1e-5, 5.0, "polynomial", 0)
    assert (paper.batch, paper.accumulate, paper.steps, paper.seed) == (1, 4, 15_000, 42)
    assert paper.mix == {"paper": 1.0} and paper.losses == {"latent": 1.0}
    assert (paper.supervoxels, paper.supervoxel_size, paper.window) == ("felzenszwalb", 5000, "minmax")


@pytest.mark.parametrize("name", ["self_supervised", "from_nothing", "larger"])
def test_configurations_for_the_benchmark_need_no_label(name: str) -> None:
    config = TrainingConfig.read(Path(name))
    assert config.label_share == 0 and config.across == "registration" and not config.shippable


def test_the_larger_network_has_twenty_million_parameters_at_most() -> None:
    larger = TrainingConfig.read(Path("larger"))
    parts = new_built_in(0, larger.network).components.values()
    count = sum(parameter.numel() for part in parts if isinstance(part, nn.Module) for parameter in part.parameters())
    assert 15e6 < count <= 20e6
    assert not larger.start


def test_a_size_can_be_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, **PLAIN, network={"factor": 8, "channels": [64, 128], "likeness": False})
    assert TrainingConfig.read(path).network == Size(factor=8, channels=(64, 128), likeness=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stepps": 3}, "stepps"),
        ({"network": {"depth": 3}}, "network.depth"),
        ({"network": {"factor": 3}}, "factor 3"),
        ({"network": {"resolution": 100}}, "multiple of 8"),
        ({"network": {"channels": [20, 40]}}, "multiples of 8"),
        ({"network": {"layers": 0}}, "layers"),
        ({"start": "built-in", "network": {"layers": 2}}, "network tells the size"),
        ({"mix": {"propagate": 0}}, "mix has nothing"),
        ({"losses": {}}, "losses has nothing"),
        ({"ahead": 0.5}, "input that new networks lack"),
        ({"on_device": True, "mix": {"paper": 1}}, "on_device makes no paper"),
        ({"synthetic_count": 0}, "nothing to draw episodes from"),
        ({"held_out": ["a"], "validate_every": 5}, "no manifest"),
        ({"learned": []}, "learned names no part"),
        ({"average": 1.0}, "average must be below 1"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        TrainingConfig.read(written(tmp_path, **PLAIN, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_command_changes_what_it_is_given_and_one_process_of_several_says_where_the_weights_are(
    tmp_path: Path, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from SDFSMISLib.training import trainer

    ran: list[TrainingConfig] = []
    monkeypatch.setattr(trainer, "train", lambda config, advance, validate: ran.append(config) or "folder")
    monkeypatch.setenv("RANK", rank)
    path = str(written(tmp_path, cases="", output="a"))
    assert main(["train", "--config", path, "--output", "b", "--cases", "scans.json"]) == 0
    assert [(config.output, config.cases) for config in ran] == [("b", "scans.json")]
    assert capsys.readouterr().out == ("Wrote the pipeline folder folder\n" if rank == "0" else "")
