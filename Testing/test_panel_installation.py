"""The environment of the backend on this computer: it is made, kept up to date and removed."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from environment_examples import Place, never, quiet, write_library, write_wheel
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.workbench.environment import MARKER, STAMP, EnvironmentState
from SDFSMISLib.workbench.installation import Installation, TorchBuild, inspect_python, pip_failure, usual_build

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "SDFSMIS" / "Resources" / "requirements-backend.txt"
NOBODY = "http://127.0.0.1:9/simple"


# -- what is installed -------------------------------------------------------------------------------------------------


def test_the_requirements_are_those_of_the_package_but_for_what_a_backend_never_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {*project["dependencies"], *project["optional-dependencies"]["serve"]}
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert len(set(listed)) == len(listed) and set(listed) <= declared
    assert {one.partition(">")[0] for one in declared - set(listed)} == {"matplotlib", "scikit-image"}


def test_where_another_build_of_torch_fits_better_it_is_said_how_to_get_it() -> None:
    for system, cards, hint in (
        ("Linux", (), "smaller one"),
        ("Linux", ("A card",), ""),
        ("Windows", ("A card",), "To use the A card"),
        ("Windows", (), ""),
        ("Darwin", (), ""),
    ):
        said = usual_build(cards, system).advice
        assert hint in said and bool(said) == bool(hint), system
        assert not said or ("pytorch.org/get-started/locally" in said and "--extra-index-url" in said)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk"),
        ("WARNING: Retrying after connection broken by 'ProxyError('Cannot connect to proxy.'", "--proxy"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "--cert"),
        ("NewConnectionError: [Errno 11001] getaddrinfo failed", "network"),
        ("ERROR: Could not install packages due to an OSError: [WinError 5] Access is denied: 'C:\\x'", "written"),
        ("ERROR: No matching distribution found for torch>=2.4", "package torch "),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "damaged"),
        ("no such option: --indx-url", "pip options"),
        ("ERROR: something new", "something new"),
    ],
)
def test_what_pip_says_becomes_a_sentence(line, word) -> None:
    error_text = pip_failure(["Collecting torch", line, "the end"])
    assert word in error_text and error_text.count(". ") == 0 and error_text.endswith(".")


# -- the environment ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Place:
    """An environment that was installed, after an installation that was cut off; what was said is beside it."""
    place = Place(tmp_path_factory.mktemp("panel backend"))  # with a space, as folders of users have
    write_library(place.folder / "SDFSMISLib")
    for name, version in (("torch", "2.5"), ("torch", "3.0"), ("painting", "1.0")):
        write_wheel(place.folder / "index", name, version)
    place.require("torch>=2.4,<3\n")
    environment = place.environment()
    assert environment.state is EnvironmentState.ABSENT
    environment.folder.mkdir()
    for name in (MARKER, "left"):
        (environment.folder / name).touch()
    assert environment.state is EnvironmentState.INCOMPLETE
    said, seen, installation = place.install()
    (place.folder / "said.json").write_text(json.dumps([said, installation.log, [vars(one) for one in seen]]))
    return place


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    """A copy of it, to be spoilt."""
    folder = tmp_path / "a copy"
    shutil.copytree(made.folder, folder, symlinks=True)
    return replace(made, folder=folder)


def test_installing_makes_an_environment_that_is_ready(made: Place) -> None:
    environment = made.environment()
    assert environment.state is EnvironmentState.READY and not environment.needs_packages
    assert (made.version_of("torch"), made.version_of("SDFSMISLib")) == ("2.5", "1.0")
    copied = environment.site_packages / "SDFSMISLib"
    files = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    wanted = {"__init__.py", "cli.py", "weights/model.safetensors", "weights/config.json"}
    assert {name for name in files if "__pycache__" not in name} == wanted
    assert environment.environment_variables() == made.variables
    assert environment.size() > 5_000_000


def test_what_is_to_be_known_of_the_build_is_said(made: Place) -> None:
    said, log, _ = json.loads((made.folder / "said.json").read_text())
    assert "It fits." in said and str(made.folder) in said
    assert "Successfully installed torch-2.5" in log and "All good." in log


def test_progress_goes_forward_through_all_steps(made: Place) -> None:
    _, _, seen = json.loads((made.folder / "said.json").read_text())
    shares = [one["share"] for one in seen]
    assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] <= 1
    assert sorted({one["step"] for one in seen}) == [1, 2, 3, 4, 5, 6] and {one["steps"] for one in seen} == {6}
    assert any(one["text"].startswith("Installing PyTorch: ") for one in seen)


def test_installing_again_does_nothing(made: Place) -> None:
    said, seen, _ = made.install("--no-index")
    assert "is installed" in said and seen == []


def test_a_newer_library_is_copied_without_pip(place: Place) -> None:
    write_library(place.folder / "SDFSMISLib", version="2.0")
    assert place.environment().state is EnvironmentState.OUTDATED and not place.environment().needs_packages
    _, seen, installation = place.install("--index-url", NOBODY)
    assert place.environment().state is EnvironmentState.READY and place.version_of("SDFSMISLib") == "2.0"
    assert seen[-1].steps == 2 and "Collecting" not in installation.log
    assert not list(place.environment().site_packages.glob("SDFSMISLib.*"))


def test_newer_requirements_are_installed_into_the_same_environment(place: Place) -> None:
    kept = place.environment().folder / "kept"
    kept.touch()
    place.require("torch>=3\npainting>=1\n")
    assert place.environment().state is EnvironmentState.OUTDATED and place.environment().needs_packages
    said, _, _ = place.install("--index-url", (place.folder / "index").as_uri())  # a mirror has torch, too
    assert (place.version_of("torch"), place.version_of("painting")) == ("3.0", "1.0")
    assert kept.exists() and "It fits." not in said


def test_where_pip_tells_the_bytes_they_are_shown(place: Place) -> None:
    place.require("torch>=3\n")
    pip = place.environment().site_packages / "pip"
    shutil.rmtree(pip)
    pip.mkdir()
    (pip / "__main__.py").write_text(
        "import sys\n"
        "if '--version' in sys.argv:\n"
        "    sys.exit(print('pip 25.0.1 from somewhere'))\n"
        "assert sys.argv[sys.argv.index('--progress-bar') + 1] == 'raw'\n"
        "print('  Downloading http://somewhere/torch-3.0-py3-none-any.whl (2.0 MB)')\n"
        "print('Progress 0 of 2000000\\nProgress 1000000 of 2000000\\nProgress 2000000 of 2000000')\n"
    )
    place.build = replace(place.build, download=4 * 10**6)
    _, seen, installation = place.install()
    texts = [one.text for one in seen]
    assert "Installing PyTorch: downloading torch-3.0 (1 of 2 MB)" in texts
    quarter, half = (next(one.share for one in seen if f"({n} of 2 MB)" in one.text) for n in (1, 2))
    start = next(one.share for one in seen if one.text == "Installing PyTorch")
    assert half - start == pytest.approx(2 * (quarter - start)) and quarter > start
    assert "Progress " not in installation.log


def test_a_comment_in_the_requirements_changes_nothing(place: Place) -> None:
    place.require("\n# another comment\ntorch>=2.4,<3\n")
    assert place.environment().state is EnvironmentState.READY


def test_what_was_cut_off_is_incomplete_and_made_anew(made: Place, place: Place) -> None:
    assert not (made.environment().folder / "left").exists()
    (place.environment().folder / STAMP).unlink()
    assert place.environment().state is EnvironmentState.INCOMPLETE


def test_an_environment_whose_python_has_gone_is_incomplete(place: Place) -> None:
    stamp = place.environment().folder / STAMP
    noted = json.loads(stamp.read_text())
    stamp.write_text(json.dumps(noted | {"standard_library": str(place.folder / "gone" / "os.py")}))
    assert place.environment().state is EnvironmentState.INCOMPLETE
    stamp.write_text("{")
    assert place.environment().state is EnvironmentState.INCOMPLETE


def test_cancelling_ends_pip_and_leaves_it_incomplete(place: Place) -> None:
    place.require("torch>=3\n")
    with silent_index() as (address, asked):
        with pytest.raises(Cancelled):
            place.install("--index-url", address, cancel=asked.is_set)
    assert place.environment().state is EnvironmentState.INCOMPLETE


def test_a_package_that_is_nowhere_is_said_and_the_log_is_kept(place: Place) -> None:
    place.require("torch>=2.4,<3\nnowhere>=1\n")
    installation = Installation(place.environment(), sys.executable, place.build, ["--no-index"])
    with pytest.raises(InputError, match="package nowhere is not there"):
        installation.run(quiet, never)
    assert "No matching distribution found for nowhere" in installation.log
    assert place.environment().state is EnvironmentState.INCOMPLETE


def test_a_library_that_does_not_work_is_not_taken_for_ready(place: Place) -> None:
    write_library(place.folder / "SDFSMISLib", said="! self-test  failed\nTo do: Install it again.")
    with pytest.raises(InputError, match="self-test failed"):
        place.install()
    assert place.environment().state is EnvironmentState.OUTDATED


def test_little_memory_at_the_moment_is_said_and_no_more(place: Place) -> None:
    write_library(place.folder / "SDFSMISLib", said="! memory  1.0 GiB free\nTo do: Free some memory.")
    assert place.install()[0].endswith("To do: Free some memory.")
    assert place.environment().state is EnvironmentState.READY


def test_a_disk_that_is_too_small_is_said_before_anything_is_made(tmp_path: Path) -> None:
    place = Place(tmp_path, TorchBuild("", 10**6, 10**18))
    write_library(tmp_path / "SDFSMISLib")
    place.require("torch\n")
    with pytest.raises(InputError, match=r"needs about 1000000000.0 GB on the disk"):
        place.install()
    assert not place.environment().folder.exists()


def test_removing_takes_all_and_says_so(place: Place) -> None:
    said = place.environment().remove()
    assert said.startswith("Removed ") and not place.environment().folder.exists()
    assert place.environment().state is EnvironmentState.ABSENT
    assert "nothing to remove" in place.environment().remove()


def test_a_folder_that_is_not_ours_is_neither_removed_nor_filled(tmp_path: Path) -> None:
    place = Place(tmp_path)
    folder = place.environment().folder
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not made by SDFSMIS"):
        place.environment().remove()
    with pytest.raises(InputError, match="has not made"):
        place.environment().make(sys.executable, never, quiet)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert place.environment().state is EnvironmentState.ABSENT


def test_removing_does_not_follow_links_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").touch()
    place = Place(tmp_path)
    folder = place.environment().folder
    folder.mkdir()
    (folder / MARKER).touch()
    try:
        (folder / "link").symlink_to(outside, target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    place.environment().remove()
    assert (outside / "thesis.txt").exists() and not folder.exists()


def test_another_python_without_the_package_is_refused(made: Place) -> None:
    with pytest.raises(InputError, match="cannot run SDFSMIS"):
        inspect_python(str(made.environment().python), {"startup": made.variables}, never)


class silent_index:  # noqa: N801 (it reads like a function)
    """An index that takes questions and never answers: its address, and an event for the first question."""

    def __enter__(self) -> tuple[str, threading.Event]:
        import socket

        self._socket = socket.create_server(("127.0.0.1", 0))
        self._taken: list[socket.socket] = []
        asked = threading.Event()

        def take() -> None:
            try:
                self._taken.append(self._socket.accept()[0])
                asked.set()
            except OSError:
                pass

        threading.Thread(target=take, daemon=True).start()
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/simple", asked

    def __exit__(self, *error: object) -> None:
        for one in (self._socket, *self._taken):
            one.close()
