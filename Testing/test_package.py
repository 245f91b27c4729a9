"""The package as others get it: cheap to import, no torch where 3D Slicer imports it, complete, of one version."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

import SDFSMISLib

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "SDFSMISLib"
HEAVY = ("torch", "diffusers", "transformers", "SimpleITK")
LAZY_NAMES = sorted(set(SDFSMISLib.__all__) - {"__version__"})

# What 3D Slicer itself may import: the files beside the rooms but the commands' console, and these rooms.
SLICER_ROOMS = sorted(
    {path.stem for path in LIBRARY.glob("*.py")} - {"__init__", "console"} | {"client", "images", "scene", "workbench"}
)


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run_python(code: str) -> str:
    """Standard output of ``code`` in a fresh interpreter that sees this checkout."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, SDFSMISLib; dir(SDFSMISLib); print([m for m in {HEAVY + ('numpy',)!r} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_what_slicer_imports_needs_no_torch() -> None:
    """With torch and its company blocked every room imports, and SimpleITK waits until something is read or written."""
    run_python(
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'diffusers', 'transformers']))\n"
        f"for room in {SLICER_ROOMS!r}:\n"
        "    importlib.import_module(f'SDFSMISLib.{room}')\n"
        "    assert 'SimpleITK' not in sys.modules, f'SDFSMISLib.{room} imports SimpleITK at module level'"
    )


def test_the_contract_without_torch_names_every_room_of_slicer(pyproject: dict[str, Any]) -> None:
    contracts = pyproject["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if "never needs torch" in c["name"])
    assert set(contract["source_modules"]) == {"SDFSMISPanel", *(f"SDFSMISLib.{room}" for room in SLICER_ROOMS)}


@pytest.mark.parametrize("name", LAZY_NAMES)
def test_a_lazy_name_resolves(name: str) -> None:
    assert getattr(SDFSMISLib, name).__name__ == name
    assert name in dir(SDFSMISLib)


def test_the_names_for_type_checkers_are_the_lazy_names() -> None:
    """A name that a type checker sees is one that runs, and the other way round."""
    tree = ast.parse((LIBRARY / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: "." * node.level + (node.module or "") for node in imports for alias in node.names}
    assert seen == SDFSMISLib._HOME
    assert sorted(seen) == LAZY_NAMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        SDFSMISLib.Segmentor  # noqa: B018


def test_the_version_is_the_same_everywhere(pyproject: dict[str, Any]) -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert pyproject["project"]["version"] == SDFSMISLib.__version__
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [SDFSMISLib.__version__]
    assert f"## [{SDFSMISLib.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def distribution_names(requirements: list[str]) -> set[str]:
    return {canonical(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in requirements}


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def imported_distributions() -> set[str]:
    """Distributions that SDFSMISLib imports anywhere, inside functions too, by their canonical names."""
    modules: set[str] = set()
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules.add(node.module.partition(".")[0])
    foreign = modules - sys.stdlib_module_names - {"SDFSMISLib"}
    installed = packages_distributions()
    return {canonical(installed.get(module, [module])[0]) for module in foreign}


def test_the_declared_dependencies_are_the_imported_ones(pyproject: dict[str, Any]) -> None:
    """Nothing is imported that is not declared, and running asks for nothing that the library does not import."""
    runtime = distribution_names(pyproject["project"]["dependencies"])
    extras = pyproject["project"]["optional-dependencies"]
    optional = distribution_names([one for name, extra in extras.items() if name != "test" for one in extra])
    imported = imported_distributions()
    assert imported <= runtime | optional, "imported but not declared in pyproject.toml"
    assert runtime <= imported, "declared in pyproject.toml but not imported"


def test_every_declared_package_is_pinned(pyproject: dict[str, Any]) -> None:
    """constraints.txt pins exactly the packages that pyproject.toml names, each inside its range's name."""
    extras = pyproject["project"]["optional-dependencies"].values()
    declared = distribution_names([*pyproject["project"]["dependencies"], *(r for extra in extras for r in extra)])
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    assert distribution_names(pins) == declared


def test_the_weights_and_configurations_are_package_data(pyproject: dict[str, Any]) -> None:
    """Every file under SDFSMISLib that is not code is named by a pattern, so that the wheel carries it."""
    patterns = pyproject["tool"]["setuptools"]["package-data"]["SDFSMISLib"]
    shipped = {path for pattern in patterns for path in LIBRARY.glob(pattern)}
    data = {
        path
        for path in LIBRARY.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and "__pycache__" not in path.parts
    }
    assert data <= shipped, f"not in the wheel: {sorted(str(path.relative_to(ROOT)) for path in data - shipped)}"
