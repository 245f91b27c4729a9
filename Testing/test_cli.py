"""The command line as a program: its words, its help, its sentences, and that it answers at once."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import SDFSMISLib
from cli_examples import Run
from SDFSMISLib.cli.segment import ManyValues

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["cli_fixtures"]


@pytest.mark.parametrize(
    ("given", "spread"),
    [
        ("--slice 3 4 5", "--slice 3 --slice 4 --slice 5"),
        ("--slice 3 --slice 4 5", "--slice 3 --slice 4 --slice 5"),
        ("--slice=3 4", "--slice=3 --slice 4"),
        ("--slice 3 -1", "--slice 3 --slice -1"),
        ("--slice -1 -2", "--slice -1 --slice -2"),
        ("--query a b --output c", "--query a --query b --output c"),
        ("--output c --query a b", "--output c --query a --query b"),
        ("--dry-run a", "--dry-run a"),
        ("--query a --dry-run b", "--query a --dry-run b"),
        ("--query a -- b c", "--query a -- b c"),
        ("--mask --query a b", "--mask --query a b"),
        ("--unknown a --query", "--unknown a --query"),
        ("--threshold -0.5 x", "--threshold -0.5 x"),
        ("--keep-largest", "--keep-largest volume"),
        ("--keep-largest --query a b", "--keep-largest volume --query a --query b"),
        ("--keep-largest slice --fill-holes", "--keep-largest slice --fill-holes"),
        ("--keep-largest=slice", "--keep-largest=slice"),
        ("", ""),
    ],
)
def test_several_values_after_one_name(given: str, spread: str) -> None:
    import typer

    from SDFSMISLib.cli.app import app

    command = typer.main.get_command(app).commands["segment"]
    assert isinstance(command, ManyValues)
    assert command.spread(given.split()) == spread.split()


@pytest.mark.parametrize("command", ["segment", "demo", "doctor", "convert", "train", "evaluate"])
def test_every_command_has_help(run: Run, command: str) -> None:
    ran = run(command, "--help")
    assert ran.code == 0 and "Usage: sdfsmis" in ran.out and ran.err == ""


def test_the_help_of_train_names_every_configuration_that_comes_with_it(run: Run) -> None:
    shipped = {path.stem for path in (Path(SDFSMISLib.__file__).parent / "training" / "configs").iterdir()}
    text = run("train", "--help").out
    assert shipped and shipped <= set(re.findall(r"\w+", text))


ERROR = re.compile(r"(InputError|Error|Refused|NotFound|Lost|NotABackend|refuse\w*)$")
FOLDERS = {"image_encoder", "image_processor", "image_projector"}  # what files and folders are really called


def parameters() -> set[str]:
    """Names of two words that parameters and attributes of the library have: nobody but a programmer knows them."""
    names = {
        one.arg if isinstance(one, ast.arg) else one.target.id
        for path in Path(SDFSMISLib.__file__).parent.rglob("*.py")
        for one in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(one, ast.arg) or (isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name))
    }
    return {name for name in names if "_" in name.strip("_")} - FOLDERS


@pytest.mark.parametrize("files", ["client/*.py", "model/convert.py", "model/loading.py"])
def test_no_sentence_for_users_names_a_parameter_of_python(files: str) -> None:
    unknown = parameters()
    told = {}
    for path in Path(SDFSMISLib.__file__).parent.glob(files):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ERROR.search(getattr(call.func, "id", "")):
                texts = [one.value for one in ast.walk(call) if isinstance(one, ast.Constant)]
                words = set(re.findall(r"\w+", " ".join(text for text in texts if isinstance(text, str))))
                told |= {f"{path.name}:{call.lineno}": found for found in [words & unknown] if found}
    assert not told


def test_help_and_version(run: Run) -> None:
    assert run("--version").out == f"sdfsmis {SDFSMISLib.__version__}\n"
    assert run().out == run("--help").out != ""


# -- as a program ---------------------------------------------------------------------------------------------------


def program(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "SDFSMISLib.cli", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_program_answers_at_once() -> None:
    """Help, and the refusal of a missing file, without the seconds that torch takes."""
    code = (
        "import sys; from SDFSMISLib.cli.app import main; "
        "code = main(['segment', '--support', 'none', '--mask', 'none', '--output', 'x.nii.gz']); "
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "2 False\n"
    assert done.stderr == "Error: There is no file or folder none.\n"


def test_the_program_hands_its_exit_code_on() -> None:
    assert program("--version").returncode == 0
    done = program("segment", "--slice", "a")
    assert (done.returncode, done.stdout) == (2, "") and len(done.stderr.splitlines()) == 1
