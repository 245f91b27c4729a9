"""The documentation: README is short and its example runs, links lead somewhere, every page is in the site's menu."""

from __future__ import annotations

import html
import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from SDFSMISLib import read_labelmap

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "Resources" / "Documentation"
README = ROOT / "README.md"
MARKDOWN = sorted([*ROOT.glob("*.md"), *PAGES.rglob("*.md"), *(ROOT / "Testing").glob("**/README.md")])
SLICER = {  # names that the tutorial takes from Slicer and its segment editor
    *("MR head", "SDFSMIS", "Sample Data", "Segmentations"),
    *("Add", "Draw", "Erase", "Paint", "Show 3D", "Sphere brush", "Undo"),
    *("Close Scene", "Export to files", "File", "Help", "Report a Bug", "Save"),
}
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:SDFSMIS|SDFSMISLib|Testing|Resources|\.github)/[\w./-]*\w\.\w+)`")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"(?ms)^```.*?^```", "", text)


def anchors(page: Path) -> set[str]:
    """The names by which the headings of a page are linked, on GitHub and on the site alike."""
    headings = re.findall(r"(?m)^#+ (.+)$", without_code(text_of(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def short_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_the_readme_is_short() -> None:
    assert len(text_of(README).splitlines()) <= 130


@pytest.mark.parametrize("page", MARKDOWN, ids=short_name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    for link in LINK.findall(without_code(text_of(page))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", MARKDOWN, ids=short_name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    for name in FILE.findall(text_of(page)):
        assert list(ROOT.glob(name)), name


def test_pages_of_the_site_link_to_nothing_outside_it() -> None:
    for page in PAGES.rglob("*.md"):
        for link in LINK.findall(without_code(text_of(page))):
            path = link.partition("#")[0]
            assert "://" in link or PAGES in (page.parent / path).resolve().parents, f"{short_name(page)}: {link}"


def site() -> dict[str, Any]:
    """mkdocs.yml, without the values that only MkDocs can read."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    return dict(yaml.load(text_of(ROOT / "mkdocs.yml"), Loader))  # noqa: S506


def listed(entries: Any) -> list[str]:
    """The pages of the site's menu."""
    if isinstance(entries, str):
        return [entries]
    return [page for entry in (entries.values() if isinstance(entries, dict) else entries) for page in listed(entry)]


def test_every_page_is_in_the_menu_once() -> None:
    pages = sorted(page.relative_to(PAGES).as_posix() for page in PAGES.rglob("*.md"))
    assert sorted(listed(site()["nav"])) == pages


def test_the_site_loads_nothing_from_elsewhere() -> None:
    """Material would load fonts from Google, the number of stars from GitHub, and diagrams' code from a CDN."""
    settings = site()
    assert settings["theme"]["font"] is False
    assert not {"repo_url", "extra_javascript", "extra_css"} & set(settings)
    assert not any("```mermaid" in text_of(page) for page in PAGES.rglob("*.md"))


def test_every_picture_is_shown_somewhere() -> None:
    shown = {(page.parent / link).resolve() for page in MARKDOWN for link in LINK.findall(text_of(page))}
    pictures = {path for path in PAGES.rglob("*") if path.suffix in {".gif", ".png", ".svg"}}
    assert pictures <= shown


def test_the_moving_picture_is_small() -> None:
    assert (PAGES / "Screenshots" / "loop.gif").stat().st_size < 1_000_000


def test_the_picture_of_the_packages_is_drawn_from_the_import_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PAGES))
    rooms = importlib.import_module("rooms")
    assert text_of(PAGES / "explanation" / "rooms.svg") == rooms.svg(), "Run Resources/Documentation/rooms.py."


def test_the_architecture_names_every_package() -> None:
    page = text_of(PAGES / "explanation" / "architecture.md")
    packages = {path.parent.name for path in (ROOT / "SDFSMISLib").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "SDFSMISLib").glob("*.py")} - {"__init__"}
    assert [name for name in sorted(packages | modules) if f"`{name}`" not in page] == []


def test_the_tutorial_calls_the_panel_s_controls_by_their_names() -> None:
    form = text_of(ROOT / "SDFSMIS" / "Resources" / "UI" / "SDFSMIS.ui")
    known = {html.unescape(text).rstrip(":") for text in re.findall(r"<string>([^<]*)</string>", form)}
    known |= {"Install", "Segment", "Turn the view", "Ventricles (SDFSMIS)"}  # the panel's code writes these
    phrases = re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", text_of(PAGES / "tutorial.md"))
    named = {name for phrase in phrases for name in re.split(r" > |: ", " ".join(phrase.split()))}
    assert sorted(named - known - SLICER) == []


def test_every_address_and_every_error_of_the_server_is_explained() -> None:
    page = text_of(PAGES / "reference" / "http.md")
    code = "\n".join(text_of(path) for path in (ROOT / "SDFSMISLib" / "server").glob("*.py"))
    addresses = set(re.findall(r'@app\.(?:get|put|head|post|delete)\(\s*"(/[^"]*)"', code)) - {"/docs"}
    errors = set(re.findall(r'ApiError\(\s*\d+,\s*"(\w+)"', code))
    assert {"/slices/{address}", "/segmentations"} <= addresses and "token_wrong" in errors
    assert [address for address in sorted(addresses) if f"{address}`" not in page] == []
    assert [error for error in sorted(errors) if f"`{error}`" not in page] == []


def test_the_readme_s_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import SimpleITK

    (example,) = re.findall(r"(?ms)^```python\n(.*?)^```", text_of(README))
    z, y, x = np.indices((5, 24, 24))
    ball = (z - 2) ** 2 * 4 + (y - 12) ** 2 + (x - 12) ** 2 < 49
    painted = ball & (z == 2)
    monkeypatch.chdir(tmp_path)
    for name, voxels in (("scan", 100 * ball.astype(np.int16)), ("painted", painted.astype(np.uint8))):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), f"{name}.nii.gz")
    exec(compile(example, "README.md", "exec"), {})
    assert (read_labelmap("structure.seg.nrrd").voxels[2] == painted[2]).all()
    assert capsys.readouterr().out.startswith("{1: ")
