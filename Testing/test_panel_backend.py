"""The backend on this computer: its environment is made, kept up to date and removed; its process serves and ends."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "SDFSMIS"))

from SDFSMISLib.client import BackendError  # noqa: E402
from SDFSMISLib.errors import Cancelled, InputError  # noqa: E402
from SDFSMISLib.wire import PROTOCOL  # noqa: E402
from SDFSMISLib.workbench.environment import (  # noqa: E402
    MARKER,
    STAMP,
    Environment,
    EnvironmentState,
    ask_python,  # noqa: E402
    run_command,  # noqa: E402
)
from SDFSMISLib.workbench.installation import (  # noqa: E402  # noqa: E402
    Installation,
    Progress,
    TorchBuild,
    inspect_python,
    pip_failure,  # noqa: E402
    usual_build,
)
from SDFSMISLib.workbench.local_backend import LocalBackend, LocalBackendState  # noqa: E402

REQUIREMENTS = ROOT / "SDFSMIS" / "Resources" / "requirements-backend.txt"
PYTHON = f'"{sys.executable}"'
WITHOUT_SSL = f"""
# makes an environment whose Python cannot import ssl
{PYTHON} "$@"
status=$?
for folder; do :; done
if [ "$2" = venv ]; then
    rm "$folder/bin/python"
    printf '#!/bin/sh\\necho no libssl\\nexit 1\\n' > "$folder/bin/python"
    chmod +x "$folder/bin/python"
fi
exit $status
"""
NOBODY = "http://127.0.0.1:9/simple"
posix = pytest.mark.skipif(os.name == "nt", reason="needs programs that are scripts")


def never() -> bool:
    return False


def quiet(what: object) -> None:
    pass


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


@dataclass
class Place:
    """A folder with a small library, requirements, wheels, and the environment that is made of them."""

    folder: Path
    build: TorchBuild = TorchBuild("It fits.", 10**6, 10**6)

    @property
    def variables(self) -> dict[str, str]:
        """Those of this process, with the wheels as the usual index, and nothing of this computer's pip settings."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        index = (self.folder / "index").as_uri()
        return own | {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_RETRIES": "0"}

    def environment(self, **others: dict[str, str]) -> Environment:
        library, requirements = self.folder / "SDFSMISLib", self.folder / "requirements.txt"
        return Environment(self.folder / "environment", library, requirements, others or {"startup": self.variables})

    def install(self, *options: str, cancel: Callable[[], bool] = never) -> tuple[str, list[Progress], Installation]:
        seen: list[Progress] = []
        installation = Installation(self.environment(), sys.executable, self.build, options)
        return installation.run(seen.append, cancel), seen, installation

    def require(self, text: str) -> None:
        (self.folder / "requirements.txt").write_text("# a comment\n" + text, encoding="utf-8")

    def version_of(self, name: str) -> str:
        code = f"import {name}; print({name}.__version__)"
        python = str(self.environment().python)
        return run_command([python, "-c", code], self.variables, folder=self.folder / "index").lines[-1]


def write_wheel(index: Path, name: str, version: str) -> None:
    """A package of one file, in an index of files."""
    place = index / name
    place.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    wheel = place / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/__init__.py", f"__version__ = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    links = "".join(f'<a href="{one.name}">{one.name}</a>' for one in sorted(place.glob("*.whl")))
    (place / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>", encoding="utf-8")


def write_library(folder: Path, said: str = "All good.", version: str = "1.0") -> None:
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "__pycache__").mkdir(exist_ok=True)
    files = {
        "__init__.py": f"__version__ = {version!r}\n",
        "cli.py": f"print({said!r})\n",
        "weights/model.safetensors": "weights",
        "weights/config.json": "{}",
        "notes.txt": "not needed",
        "__pycache__/left.py": "not needed",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Place:
    """An environment that was installed; what the installation said is beside it."""
    place = Place(tmp_path_factory.mktemp("panel backend"))  # with a space, as folders of users have
    write_library(place.folder / "SDFSMISLib")
    for name, version in (("torch", "2.5"), ("torch", "3.0"), ("painting", "1.0")):
        write_wheel(place.folder / "index", name, version)
    place.require("torch>=2.4,<3\n")
    assert place.environment().state is EnvironmentState.ABSENT
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


def test_what_was_cut_off_is_incomplete_and_made_anew(place: Place) -> None:
    (place.environment().folder / "left").touch()
    (place.environment().folder / STAMP).unlink()
    assert place.environment().state is EnvironmentState.INCOMPLETE
    place.install()
    assert place.environment().state is EnvironmentState.READY
    assert not (place.environment().folder / "left").exists()


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


# -- the Python that it is made of -------------------------------------------------------------------------------------


@pytest.fixture
def python_like_slicers(tmp_path: Path) -> Path:
    """A Python laid out as Slicer's: the program apart from its standard library, and a starter that tells it where."""
    root, library = tmp_path / "Slicer", Path(sysconfig.get_path("stdlib"))
    inside = root / "lib" / "Python" / "lib"
    for folder in (root / "bin", inside):
        folder.mkdir(parents=True)
    (inside / library.name).symlink_to(library)
    shutil.copy2(os.path.realpath(sys.executable), root / "bin" / "python-real")
    starter = root / "bin" / "PythonSlicer"
    shared = sysconfig.get_config_var("LIBDIR")
    text = f'#!/bin/sh\nPYTHONHOME="{root}/lib/Python" LD_LIBRARY_PATH="{shared}" exec "{root}/bin/python-real" "$@"\n'
    starter.write_text(text)
    starter.chmod(0o755)
    return starter


@posix
@pytest.mark.skipif(sys.version_info < (3, 11), reason="older ones look beside the program itself; Slicer's is 3.12")
def test_the_environment_of_slicers_python_finds_its_standard_library(python_like_slicers, tmp_path: Path) -> None:
    place = Place(tmp_path)
    slicers = place.variables | {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")), "PYTHONHOME": "/no"}
    broken = place.variables | {"PYTHONPLATLIBDIR": "nowhere"}
    environment = place.environment(startup=broken, slicer=slicers)
    assert environment.make(str(python_like_slicers), never, quiet) == "slicer"
    code = "import sys, pip; print(sys.base_prefix, sys.prefix)"
    done = run_command([str(environment.python), "-c", code], environment.environments["slicer"])
    assert done.lines[-1] == f"{tmp_path / 'Slicer' / 'lib' / 'Python'} {environment.folder}"
    write_library(tmp_path / "SDFSMISLib")
    place.require("torch\n")
    environment.copy_library()
    environment.finish("slicer")
    assert environment.state is EnvironmentState.READY and environment.variables_name == "slicer"
    shutil.rmtree(tmp_path / "Slicer")  # Slicer is uninstalled
    assert environment.state is EnvironmentState.INCOMPLETE


@posix
def test_a_python_with_which_no_environment_starts_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)
    environment = place.environment()
    with pytest.raises(InputError, match="is no Python that starts .broken.; name the program"):
        environment.make(script(tmp_path, "echo broken; exit 1"), never, quiet)
    assert not environment.folder.exists()
    without = script(tmp_path, WITHOUT_SSL)
    with pytest.raises(InputError, match=r"does not start \(no libssl\); name another Python"):
        environment.make(without, never, quiet)
    assert environment.state is EnvironmentState.INCOMPLETE


@posix
def test_a_python_without_venv_is_refused(tmp_path: Path) -> None:
    python = script(tmp_path, f'case "$*" in *venv*) echo No module named venv; exit 1;; esac; exec {PYTHON} "$@"')
    with pytest.raises(InputError, match=r"cannot make a Python environment \(No module named venv\); name another"):
        Place(tmp_path).environment().make(python, never, quiet)


@posix
@pytest.mark.parametrize(("minor", "word"), [(9, "too old"), (13, "too new")])
def test_a_python_that_is_too_old_or_too_new_is_refused(minor, word, tmp_path: Path) -> None:
    python = script(tmp_path, f'echo \'[[3, {minor}], "/", "/python", "/lib", []]\'')
    with pytest.raises(InputError, match=rf"Python 3.{minor}, which is {word}; name a Python 3.10, 3.11 or 3.12"):
        ask_python(python, {"startup": dict(os.environ)}, never)


def test_what_is_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be run"):
        ask_python(str(tmp_path / "nothing"), {"startup": dict(os.environ)}, never)


def test_another_python_that_has_the_package_is_adopted() -> None:
    broken = dict(os.environ) | {"PYTHONPLATLIBDIR": "nowhere"}
    adopted = inspect_python(sys.executable, {"startup": broken, "slicer": dict(os.environ)}, never)
    assert adopted.version and adopted.python == sys.executable
    assert "PYTHONPLATLIBDIR" not in adopted.variables


@posix
@pytest.mark.parametrize(
    ("said", "word"),
    [
        (f'["9", {PROTOCOL + 1}, []]', "update this panel"),
        (f'["0", {PROTOCOL - 1}, []]', "update SDFSMIS in that Python"),
        (f'["1", {PROTOCOL}, ["fastapi"]]', "without fastapi"),
    ],
)
def test_another_python_that_does_not_fit_is_refused(said, word, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=word):
        inspect_python(script(tmp_path, f"echo '{said}'"), {"startup": dict(os.environ)}, never)


def test_another_python_without_the_package_is_refused(made: Place) -> None:
    with pytest.raises(InputError, match="cannot run SDFSMIS"):
        inspect_python(str(made.environment().python), {"startup": made.variables}, never)


def test_a_program_that_is_cancelled_ends_with_all_that_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    lines: list[str] = []
    with pytest.raises(Cancelled):
        run_command([sys.executable, "-c", code], os.environ, on_line=lines.append, cancel=lambda: bool(lines))
    assert until(lambda: not is_running(int(lines[0])))


# -- the process -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Iterator[LocalBackend]:
    """A real backend with the built-in weights."""
    pytest.importorskip("fastapi")
    backend = LocalBackend(sys.executable, os.environ, device="cpu")
    yield backend
    backend.stop()


def test_two_threads_that_ask_at_once_get_one_process(real: LocalBackend) -> None:
    urls: list[str] = []
    lines: list[str] = []
    threads = [threading.Thread(target=lambda: urls.append(real.client(on_log=lines.append).url)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert until(lambda: real.state is LocalBackendState.STARTING) and "starting" in real.status
    for thread in threads:
        thread.join()
    assert len(urls) == 2 and len(set(urls)) == 1
    assert real.state is LocalBackendState.RUNNING and "version" in real.status
    assert real.client().capabilities().models[0].name == "built-in"
    assert until(lambda: "SDFSMIS" in real.log) and lines


def test_one_that_has_died_is_started_again(real: LocalBackend) -> None:
    first = real.client().url
    process = real._holder.process
    assert process is not None
    process._child.process.kill()
    assert until(lambda: real.state is LocalBackendState.FAILED) and "ended by itself" in real.status
    assert real.client().url != first and real.client().capabilities()


def test_stopping_ends_it_at_once_and_can_be_done_again(real: LocalBackend) -> None:
    process = process_of(real)
    real.stop()
    assert process.poll() is not None
    real.stop()
    assert real.state is LocalBackendState.STOPPED and "when it is needed" in real.status


@posix
def test_it_ends_when_the_object_is_deleted(tmp_path: Path) -> None:
    backend = LocalBackend(ready_backend(tmp_path), os.environ)
    process = process_of(backend)
    assert process.poll() is None
    del backend
    gc.collect()
    assert process.poll() is not None


def test_it_ends_when_the_program_that_started_it_is_killed(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    code = (
        f"import os, sys, time; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'SDFSMIS')!r}]\n"
        "from SDFSMISLib.workbench.local_backend import LocalBackend\n"
        "backend = LocalBackend(sys.executable, os.environ, device='cpu')\n"
        "backend.client()\n"
        "print(backend._holder.process._child.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        number = int(parent.stdout.readline())
        parent.kill()
    assert until(lambda: not is_running(number))


@posix
def test_stopping_while_it_starts_ends_the_start_for_all_who_wait(tmp_path: Path) -> None:
    mark = tmp_path / "process"
    backend = LocalBackend(script(tmp_path, f'echo $$ > "{mark}.new"; mv "{mark}.new" "{mark}"; exec sleep 60'), {})
    outcomes: list[type] = []

    def ask() -> None:
        try:
            backend.client()
        except Exception as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert until(mark.exists)
    backend.stop()
    for thread in threads:
        thread.join()
    assert outcomes == [Cancelled, Cancelled] and backend.state is LocalBackendState.STOPPED
    assert not is_running(int(mark.read_text()))


@posix
def test_one_who_waits_can_give_up_and_the_start_goes_on(tmp_path: Path) -> None:
    go = tmp_path / "go"
    backend = LocalBackend(ready_backend(tmp_path, f'while [ ! -e "{go}" ]; do sleep 0.05; done'), os.environ)
    starter = threading.Thread(target=backend.client)
    starter.start()
    assert until(lambda: backend.state is LocalBackendState.STARTING)
    with pytest.raises(Cancelled):
        backend.client(cancel=lambda: True)
    go.touch()
    starter.join()
    assert backend.state is LocalBackendState.RUNNING
    backend.stop()


@posix
def test_one_that_does_not_start_says_why_and_is_tried_again(tmp_path: Path) -> None:
    backend = LocalBackend(script(tmp_path, "echo There is no such model. >&2; exit 2"), os.environ, model="none")
    for _ in range(2):
        with pytest.raises(BackendError, match="There is no such model"):
            backend.client()
        assert backend.state is LocalBackendState.FAILED and "exit status 2" in backend.status
    assert backend.log.splitlines() == ["There is no such model."] * 2


def test_without_its_python_it_is_absent(tmp_path: Path) -> None:
    backend = LocalBackend(str(tmp_path / "python"), os.environ)
    assert backend.state is LocalBackendState.ABSENT and "not installed" in backend.status
    with pytest.raises(InputError, match="install SDFSMIS"):
        backend.client()
    backend.stop()


# -- helpers -----------------------------------------------------------------------------------------------------------


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


def process_of(backend: LocalBackend) -> subprocess.Popen[str]:
    backend.client()
    process = backend._holder.process
    assert process is not None
    return process._child.process


def script(folder: Path, text: str) -> str:
    """A program that takes the place of Python."""
    program = folder / f"program{len(list(folder.glob('program*')))}"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


def ready_backend(folder: Path, before: str = ":") -> str:
    """A program that says that it is ready, and ends when its input closes."""
    return script(folder, before + """\necho '{"url": "http://127.0.0.1:9", "version": "9"}'; exec cat""")


def until(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true within 20 seconds."""
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def is_running(number: int) -> bool:
    """Whether a process of that number is there."""
    if os.name == "nt":
        return False  # to ask this way would end it there
    try:
        os.kill(number, 0)
    except OSError:
        return False
    state = Path(f"/proc/{number}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")  # one that nobody buries
