"""The report: all that was measured is on the page, and nothing outside it is needed to read it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation import Manifest, Task, copy_support, evaluate, read_manifest, write_report
from small_cases import COLUMN, CONE, ManifestMaker, boxes


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    maker = ManifestMaker(tmp_path)
    for number in (1, 2, 3, 4):
        maker.add(f"a<b/{number}", boxes(COLUMN, CONE), {"column": 1, "$cone & co": 2})
    maker.add("b/1", boxes(COLUMN), {"column": 1})
    return read_manifest(maker.write())


def nothing(task: Task) -> np.ndarray:
    return np.zeros(task.reference.shape, dtype=bool)


class Page(HTMLParser):
    """What a page says and shows; elements must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.pictures: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_tells_all_and_stands_alone(manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    evaluate(manifest, "same-volume", {"copy": copy_support, "nothing <1>": nothing}, output=folder)
    steps: list[tuple[int, int]] = []
    path = write_report(folder, manifest, "sdfsmis evaluate --cases <file>", lambda *step: steps.append(step[:2]))
    page = Page(path)
    for text in ("sdfsmis evaluate --cases <file>", "same-volume, 1 painted slice", "nothing <1>", "$cone & co", "a<b"):
        assert text in page.texts
    assert "– (8)" in page.texts  # of "nothing" no surface distance of the group's 8 tasks is defined
    # a box plot for each group; best, median and worst of the 8 tasks of one group and method, and the 1 of the other
    assert len(page.pictures) == 2 + 2 * 3 + 2 * 1 and steps[-1] == (8, 8)
    assert all(re.match(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$", picture) for picture in page.pictures)
    assert len(list((folder / "pictures").iterdir())) == len(page.pictures)
    assert {file.name for file in folder.iterdir()} == {
        *("results.csv", "results.json", "summary.json", "report.html", "tables.md", "pictures", "predictions")
    }
    assert "| **a<b** | **mean** | **8** |" in (folder / "tables.md").read_text(encoding="utf-8")


def test_best_median_and_worst_are_shown(manifest: Manifest, tmp_path: Path) -> None:
    def of_some_quality(task: Task) -> np.ndarray:
        mask = task.reference.copy()
        mask[:, :: int(task.case.id[-1]) + 1] = False
        return mask

    evaluate(manifest, "same-volume", {"m": of_some_quality}, manifest.cases[:4], output=tmp_path, metrics=("dice",))
    texts = Page(write_report(tmp_path, manifest)).texts
    shown = [text for text in texts if re.match("(best|median|worst) of", text)]
    assert [text.split(" of ")[0] for text in shown] == ["best", "median", "worst"]
    dice = [float(text.rpartition(" ")[2]) for text in shown]
    assert dice == sorted(dice, reverse=True) and "a<b/1" in shown[2]


def test_the_report_is_right_after_a_run_was_taken_up_again(manifest: Manifest, tmp_path: Path) -> None:
    def interrupted(task: Task) -> np.ndarray:
        if task.case.id.endswith("3"):
            raise KeyboardInterrupt
        return copy_support(task)

    cases, dice = manifest.cases[1:3], ("dice",)
    apart, at_once = tmp_path / "apart", tmp_path / "at_once"
    with pytest.raises(KeyboardInterrupt):
        evaluate(manifest, "same-volume", {"copy": interrupted}, cases, output=apart, metrics=dice)
    for methods in ({"copy": copy_support}, {"nothing": nothing}):
        evaluate(manifest, "same-volume", methods, cases, output=apart, metrics=dice)
    evaluate(manifest, "same-volume", {"copy": copy_support, "nothing": nothing}, cases, output=at_once, metrics=dice)
    pages = [Page(write_report(folder, manifest)) for folder in (apart, at_once)]
    assert sorted(pages[0].pictures) == sorted(pages[1].pictures)
    tables = [(folder / "tables.md").read_text(encoding="utf-8").split("### Seconds")[0] for folder in (apart, at_once)]
    assert tables[0] == tables[1]


def test_cases_that_are_not_listed_any_more_have_figures_and_no_sheets(manifest: Manifest, tmp_path: Path) -> None:
    evaluate(manifest, "same-volume", {"copy": copy_support}, output=tmp_path, metrics=("dice",))
    page = Page(write_report(tmp_path, Manifest(manifest.groups, manifest.cases[4:])))
    assert len(page.pictures) == 2 + 1 and "a<b" in page.texts


def test_several_protocols_have_a_section_each(manifest: Manifest, tmp_path: Path) -> None:
    for protocol in ("same-volume", "field"):
        evaluate(manifest, protocol, {"copy": copy_support}, manifest.cases[:1], output=tmp_path, metrics=("dice",))
    texts = Page(write_report(tmp_path, manifest)).texts
    assert "same-volume, 1 painted slice" in texts and "field" in texts
    assert any("for comparison with papers only" in text for text in texts)


def test_a_folder_without_results_has_no_report(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot read the results"):
        write_report(tmp_path / "none", manifest)
    assert not (tmp_path / "none").exists()
