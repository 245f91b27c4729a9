"""The Python that the environment is made of, and another one that has the package: what fits, and what does not."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from environment_examples import PYTHON, Place, never, quiet, write_library
from processes import is_running, posix, script, until
from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.wire import PROTOCOL
from SDFSMISLib.workbench.environment import EnvironmentState, ask_python, run_command
from SDFSMISLib.workbench.installation import inspect_python

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
    code = "import os, sys, pip; print(os.__file__); print(sys.prefix)"
    done = run_command([str(environment.python), "-c", code], environment.environments["slicer"])
    library = tmp_path / "Slicer" / "lib" / "Python" / "lib" / Path(sysconfig.get_path("stdlib")).name
    assert Path(done.lines[-2]).samefile(library / "os.py") and done.lines[-1] == str(environment.folder)
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
    until(lambda: not is_running(int(lines[0])))
