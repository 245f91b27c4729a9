"""The extension as Slicer packages it and the extension index reads it: lists, entry, pictures, samples, workflows."""

from __future__ import annotations

import ast
import inspect
import json
import re
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
MODULE = ROOT / "SDFSMIS"
LIBRARY = ROOT / "SDFSMISLib"
ICONS = MODULE / "Resources" / "Icons"
EXTENSION = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
BUILD = (MODULE / "CMakeLists.txt").read_text(encoding="utf-8")
ENTRY: dict[str, Any] = json.loads((ROOT / "SDFSMIS.json").read_text(encoding="utf-8"))
FOLDERS = (".github", "Resources", "SDFSMIS", "SDFSMISLib", "Testing")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

# The owner of the repository, until it is known; in two parts, so that this file is none of those that name it.
NOT_KNOWN = "REPLACE" + "-ME"
ADDRESS = re.compile(r"https://(?:github|raw\.githubusercontent)\.com/([^/\s]+)/SlicerSDFSMIS\b")


def value(name: str) -> str:
    """The text that the extension's CMakeLists.txt gives a variable, read as the extension index reads it: one line."""
    (found,) = re.findall(rf'^set\({name} "([^"\n]+)"\)$', EXTENSION, re.MULTILINE)
    return str(found)


def listed(name: str) -> list[str]:
    """The files of a list in the module's CMakeLists.txt."""
    (block,) = re.findall(rf"^set\({name}\n(.*?)\n  \)$", BUILD, re.MULTILINE | re.DOTALL)
    return [line.strip().replace("${MODULE_NAME}", "SDFSMIS") for line in block.splitlines()]


def files(folder: Path) -> list[Path]:
    """All files of a folder that people keep there: none that Python or a tool has cached."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not cached(path.relative_to(folder)))


def cached(path: Path) -> bool:
    return any(part == "__pycache__" or part.startswith(".") for part in path.parts)


def names(paths: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def png_size(path: Path) -> tuple[int, int]:
    """(width, height) of a PNG, in pixels."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n", f"{path.name} is no PNG."
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def imported(path: Path) -> set[str]:
    """The modules that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path.name}: an import here names its package."
            found.add(node.module)
    return found


def texts_of_the_project() -> dict[str, str]:
    """By its path, the text of every file in which the repository's address might stand."""
    found = [path for name in FOLDERS for path in files(ROOT / name)]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    kinds = {".cff", ".cmake", ".json", ".md", ".py", ".toml", ".txt", ".ui", ".yaml", ".yml", ""}
    texts = [path for path in found if path.suffix in kinds]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8", errors="replace") for path in texts}


# What is installed


def test_every_script_of_the_module_is_listed_and_in_order() -> None:
    scripts = names(files(MODULE / "SDFSMISPanel"), MODULE)
    assert listed("MODULE_PYTHON_SCRIPTS") == ["SDFSMIS.py", *(name for name in scripts if name.endswith(".py"))]


def test_every_resource_of_the_module_is_listed_and_in_order() -> None:
    assert listed("MODULE_PYTHON_RESOURCES") == names(files(MODULE / "Resources"), MODULE)


def test_nothing_else_lies_in_the_module_s_folder() -> None:
    there = set(names(files(MODULE), MODULE)) - {"CMakeLists.txt"}
    assert there == {*listed("MODULE_PYTHON_SCRIPTS"), *listed("MODULE_PYTHON_RESOURCES")}


def test_every_file_of_the_library_is_of_a_kind_that_is_installed() -> None:
    kinds = set(re.findall(r'"\$\{SDFSMIS_SOURCE_DIR\}/SDFSMISLib/\*(\.\w+)"', BUILD))
    assert {path.suffix for path in files(LIBRARY)} == kinds
    assert LIBRARY / "weights" / "built-in" / "model_index.json" in files(LIBRARY)


def test_the_library_is_installed_where_the_module_is() -> None:
    (call,) = re.findall(r"ctkMacroCompilePythonScript\((.*?)\n  \)", BUILD, re.DOTALL)
    assert '"${CMAKE_BINARY_DIR}/${Slicer_QTSCRIPTEDMODULES_LIB_DIR}"' in call
    assert '"${Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR}"' in call
    for variable in re.findall(r'(?:SCRIPTS|RESOURCES) "\$\{(\w+)\}"', call):
        assert f"file(GLOB_RECURSE {variable}\n" in BUILD


def test_the_tests_of_the_module_are_registered() -> None:
    assert "WITH_GENERIC_TESTS" in BUILD
    assert re.search(r"if\(BUILD_TESTING\)\s+slicer_add_python_unittest\(SCRIPT \$\{MODULE_NAME\}\.py\)", BUILD)


def test_the_module_imports_only_what_slicer_ships_and_our_own() -> None:
    allowed = sys.stdlib_module_names | {"SampleData", "SimpleITK", "ctk", "numpy", "qt", "scipy", "slicer", "vtk"}
    used = {module.partition(".")[0] for path in MODULE.rglob("*.py") for module in imported(path)}
    assert used <= allowed | {"SDFSMISLib", "SDFSMISPanel"}


# The catalog entry


def test_the_project_has_the_extension_s_name() -> None:
    name = re.findall(r"project\s*\(\s*([^\s)]+)", EXTENSION, re.IGNORECASE)[0]
    assert name == "SDFSMIS" == (ROOT / "SDFSMIS.json").stem
    assert "add_subdirectory(SDFSMIS)" in EXTENSION and "set(MODULE_NAME SDFSMIS)" in BUILD


def test_the_entry_has_the_schema_s_keys_and_kinds() -> None:
    kinds = {"$schema": str, "category": str, "scm_url": str, "scm_revision": str, "scm_type": str, "enabled": bool}
    kinds |= {"build_dependencies": list, "build_subdirectory": str, "tier": int}
    assert {key: type(item) for key, item in ENTRY.items()} == kinds
    assert re.search(r"/slicer-extension-catalog-entry-schema-v1\.0\.[12]\.json#?$", ENTRY["$schema"])
    assert ENTRY["category"] == "Segmentation" and 1 <= ENTRY["tier"] <= 5


def test_the_entry_says_what_cmake_says() -> None:
    depends = value("EXTENSION_DEPENDS")
    assert ENTRY["build_dependencies"] == ([] if depends == "NA" else depends.split())
    assert ENTRY["scm_url"] == value("EXTENSION_HOMEPAGE") + ".git"


def test_the_entry_has_unix_line_endings() -> None:
    assert b"\r" not in (ROOT / "SDFSMIS.json").read_bytes()


def test_the_description_is_two_sentences_that_cmake_can_pass_on() -> None:
    description = value("EXTENSION_DESCRIPTION")
    assert len(re.findall(r"\.(?=\s|$)", description)) == 2
    assert ";" not in description, "CMake would make a list of it."
    assert value("EXTENSION_CONTRIBUTORS") == "SDFSMIS contributors"


def test_the_pictures_of_the_catalog_are_in_the_repository() -> None:
    urls = [value("EXTENSION_ICONURL"), *value("EXTENSION_SCREENSHOTURLS").split(" ")]
    for url in urls:
        _, owner, repository, branch, path = urlsplit(url).path.split("/", 4)
        assert url.startswith("https://raw.githubusercontent.com/")
        assert branch == ENTRY["scm_revision"]
        assert png_size(ROOT / path) > (0, 0)


def test_all_addresses_name_one_owner_and_a_repository_that_begins_with_slicer() -> None:
    owners = {owner for text in texts_of_the_project().values() for owner in ADDRESS.findall(text)}
    assert len(owners) == 1, "The owner of the repository was replaced in some places only."
    assert re.fullmatch(r"Slicer\w+", Path(urlsplit(ENTRY["scm_url"]).path).stem)


def test_the_owner_that_is_not_known_stands_in_two_files_only() -> None:
    marked = {name for name, text in texts_of_the_project().items() if NOT_KNOWN in text}
    assert marked in (set(), {"CMakeLists.txt", "SDFSMIS.json"})


def test_the_licence_and_the_readme_that_the_package_names_exist() -> None:
    for variable in ("EXTENSION_LICENSE_FILE", "EXTENSION_README_FILE"):
        assert (ROOT / value(variable).replace("${CMAKE_CURRENT_SOURCE_DIR}/", "")).is_file()
    assert "Apache License" in (ROOT / "LICENSE.txt").read_text(encoding="utf-8")


def test_the_checkout_is_smaller_than_the_index_allows() -> None:
    size = sum(path.stat().st_size for name in FOLDERS for path in files(ROOT / name))
    assert size < 100e6


# Pictures


def test_the_icon_has_the_usual_size() -> None:
    assert png_size(ICONS / "SDFSMIS.png") == (128, 128)


def test_the_icon_is_the_same_picture_in_both_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slicer shows the one, the catalog the other."""
    np = pytest.importorskip("numpy")
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    gui, svg = pytest.importorskip("PySide6.QtGui"), pytest.importorskip("PySide6.QtSvg")
    drawn = gui.QImage(128, 128, gui.QImage.Format.Format_ARGB32)
    drawn.fill(0)
    painter = gui.QPainter(drawn)
    svg.QSvgRenderer(str(ICONS / "SDFSMIS.svg")).render(painter)
    painter.end()
    stored = gui.QImage(str(ICONS / "SDFSMIS.png")).convertToFormat(gui.QImage.Format.Format_ARGB32)
    both = [np.frombuffer(image.constBits(), np.uint8).astype(float) for image in (drawn, stored)]
    assert np.abs(both[0] - both[1]).mean() < 4  # of 255; edges may be smoothed otherwise
    assert (both[1].reshape(-1, 4)[:, 3] > 0).mean() > 0.4, "The icon is hardly there."


# Sample data

SIGNATURE = inspect.Signature(
    [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in (
            "category sampleName uris fileNames nodeNames customDownloader thumbnailFileName loadFileType loadFiles "
            "loadFileProperties checksums"
        ).split()
    ]
)


@pytest.fixture
def sample_data(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("slicer")
    monkeypatch.syspath_prepend(str(MODULE))
    from SDFSMISPanel import sample_data

    return sample_data


def sample_data_module(monkeypatch: pytest.MonkeyPatch, *, with_categories: bool) -> list[tuple[str, dict[str, Any]]]:
    """Puts a Sample Data module in place that takes the arguments which Slicer's takes, and gives the calls it gets."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class SampleDataLogic:
        @staticmethod
        def registerCustomSampleDataSource(**arguments: Any) -> None:  # noqa: N802
            calls.append(("source", SIGNATURE.bind(**arguments).arguments))

        if with_categories:

            @staticmethod
            def registerCustomSampleDataCategory(category: str, title: str) -> None:  # noqa: N802
                calls.append(("category", {"category": category, "title": title}))

    module = ModuleType("SampleData")
    vars(module)["SampleDataLogic"] = SampleDataLogic
    monkeypatch.setitem(sys.modules, "SampleData", module)
    return calls


def test_samples_are_registered_in_a_category_of_their_own(sample_data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = sample_data_module(monkeypatch, with_categories=True)
    sample_data.register_sample_data()
    assert [kind for kind, _ in calls] == ["category", "source", "source"]
    assert {arguments["category"] for _, arguments in calls} == {"SDFSMIS"}


def test_samples_are_registered_where_slicer_knows_no_categories_yet(
    sample_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = sample_data_module(monkeypatch, with_categories=False)
    sample_data.register_sample_data()
    assert [kind for kind, _ in calls] == ["source", "source"]


def test_a_sample_has_an_address_a_checksum_and_a_thumbnail(sample_data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = sample_data_module(monkeypatch, with_categories=False)
    sample_data.register_sample_data()
    for _, sample in calls:
        kind, digest = sample["checksums"].split(":")
        assert kind == "SHA256" and re.fullmatch("[0-9a-f]{64}", digest)
        assert sample["uris"].startswith("https://") and sample["uris"].endswith(f"/SHA256/{digest}")
        assert png_size(Path(sample["thumbnailFileName"])) == (260, 280)
        assert sample["fileNames"].endswith(".nrrd") and sample["nodeNames"] and sample["sampleName"]


def test_an_application_without_the_sample_data_module_starts_without_samples(
    sample_data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "SampleData", None)
    sample_data.register_sample_data()


# Workflows


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_there_is_a_workflow_without_slicer_one_with_it_and_one_of_the_documentation() -> None:
    assert [path.name for path in WORKFLOWS] == ["docs.yml", "slicer.yml", "tests.yml"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_what_it_needs_to_run(workflow: Path) -> None:
    read = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    triggers = read[True]  # YAML 1.1 reads the key "on" as a truth
    assert {"push", "pull_request", "workflow_dispatch"} <= set(triggers)
    assert read["permissions"] == {"contents": "read"}
    assert all("runs-on" in job and job["timeout-minutes"] <= 90 for job in read["jobs"].values())
    assert all(("run" in step) != ("uses" in step) for step in steps(workflow))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_to_a_major_version(workflow: Path) -> None:
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps(workflow) if "uses" in step)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_loads_from_nowhere_but_slicer_s_download_page(workflow: Path) -> None:
    hosts = {urlsplit(url).hostname for url in re.findall(r"https?://[^\s\"']+", workflow.read_text(encoding="utf-8"))}
    assert hosts <= {"download.slicer.org"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_the_test_files_that_a_workflow_names_exist(workflow: Path) -> None:
    named = re.findall(r"Testing/\w+\.py", workflow.read_text(encoding="utf-8"))
    assert all((ROOT / name).is_file() for name in named)


def test_the_python_versions_of_the_workflow_are_the_oldest_and_the_newest_supported() -> None:
    matrix = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    supported = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = re.findall(r"Python :: (3\.\d+)", supported)
    assert matrix["jobs"]["linux"]["strategy"]["matrix"]["python"] == [versions[0], versions[-1]]
