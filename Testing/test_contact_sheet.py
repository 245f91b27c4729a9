"""The contact sheet: what is shown, which way round, and that a bad request leaves nothing behind."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from SDFSMISLib.errors import InputError
from SDFSMISLib.evaluation.contact_sheet import (
    DOTS_PER_INCH,
    GAP,
    LARGEST_TILE,
    SHEET_WIDTH,
    chosen_slices,
    contact_sheet,
)
from SDFSMISLib.images.planes import Plane
from SDFSMISLib.images.volume import Geometry, Volume

SIZES, SPACINGS = (12, 40, 36), (3.0, 1.0, 1.0)  # toward S, P, L; mm
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}


def stored(canonical: np.ndarray, order: tuple[int, ...], flips: tuple[bool, ...]) -> Volume:
    """A volume whose array axes run toward S, P, L, as a file that has its axes in another order and sense."""
    array = np.transpose(canonical, order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    towards = np.eye(3)[[2, 1, 0]]  # of the canonical axes, in LPS
    columns = [towards[axis] * (-1 if flip else 1) for axis, flip in zip(order, flips, strict=True)]
    direction = np.stack(columns[::-1], axis=1).ravel()
    spacing = tuple(SPACINGS[axis] for axis in order[::-1])
    geometry = Geometry(array.shape, spacing, (0.0, 0.0, 0.0), tuple(direction))  # type: ignore[arg-type]
    return Volume(np.ascontiguousarray(array), geometry)


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    """Grey, with a bright block in the right anterior superior corner."""
    voxels = np.random.default_rng(0).normal(100, 4, SIZES)
    voxels[6:, :20, :18] += 100
    return voxels.astype(np.float32)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """A structure through the whole of the scan, so large that whole slices are shown."""
    voxels = np.zeros(SIZES, dtype=np.uint8)
    voxels[:, 4:36, 4:32] = 1
    return voxels


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the legends say, as they are drawn."""
    from matplotlib.figure import Figure

    texts: list[str] = []
    legend = Figure.legend

    def drawn(figure: Figure, *arguments: Any, **options: Any) -> Any:
        texts.extend(handle.get_label() for handle in options["handles"])
        return legend(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "legend", drawn)
    return texts


def picture(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize("plane", PLANES)
def test_slices_are_shown_as_radiologists_see_them(
    tmp_path: Path, scan: np.ndarray, labels: np.ndarray, plane: str
) -> None:
    """The bright corner is up and left in the first of two tiles, however the file lies; pixels are true to shape."""
    shown = [axis for axis in range(3) if axis != PLANES[plane]]
    extents = [SIZES[axis] * SPACINGS[axis] for axis in shown]
    tile = LARGEST_TILE * DOTS_PER_INCH
    tile_height = tile * extents[0] / extents[1]
    left = (SHEET_WIDTH - 2 * LARGEST_TILE - GAP) / 2 * DOTS_PER_INCH
    layouts = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))
    for order, flips in layouts[PLANES[plane] :: 9]:  # all orders, and six of the eight flips, others in each plane
        path = tmp_path / "sheet.png"
        axis = order.index(PLANES[plane])
        contact_sheet(stored(scan, order, flips), stored(labels, order, flips), path, axis=axis, columns=2, count=2)
        grey = picture(path)[..., :3].mean(axis=2)
        top = 0.8 * DOTS_PER_INCH
        quarters = np.empty((2, 2, 2))
        for number, row, column in itertools.product(range(2), repeat=3):
            x = left + number * (tile + GAP * DOTS_PER_INCH) + tile * (0.3 + 0.4 * column)
            y = top + tile_height * (0.3 + 0.4 * row)
            quarters[number, row, column] = np.median(grey[int(y) - 15 : int(y) + 15, int(x) - 15 : int(x) + 15])
        assert quarters[0, 0, 0] > quarters.ravel()[1:].max() + 0.3, (order, flips)
        assert abs(grey.shape[0] - (top + tile_height + GAP * DOTS_PER_INCH + 0.49 * DOTS_PER_INCH)) <= 2


def test_painted_slices_of_other_axes_are_lines_and_do_not_count(
    tmp_path: Path, scan: np.ndarray, labels: np.ndarray, entries: list[str]
) -> None:
    row = int(np.flatnonzero((labels == 1).any(axis=(0, 2)))[0])
    prediction = labels.copy()
    prediction[:, row] = 0  # wrong there, and nowhere else
    volumes = [stored(voxels, (0, 1, 2), (False,) * 3) for voxels in (scan, prediction, labels)]
    yellow = []
    for painted in ([Plane(0, 5), Plane(1, row)], [5]):
        path = contact_sheet(*volumes[:2], tmp_path / "sheet.png", volumes[2], painted=painted)
        colours = picture(path)[..., :3].reshape(-1, 3)
        yellow.append(int(((colours[:, 0] > 0.5) & (colours[:, 1] > 0.4) & (colours[:, 2] < 0.3)).sum()))
    assert yellow[0] > yellow[1] + 1000
    assert entries[0].endswith("Dice 1.000") and not entries[3].endswith("Dice 1.000")
    with pytest.raises(InputError, match="Slice 99 was named as painted; axis 2 of this scan has the slices 0 to"):
        contact_sheet(*volumes[:2], tmp_path / "sheet.png", painted=[Plane(2, 99)])


def test_painted_slices_are_framed_and_a_reference_is_scored(
    tmp_path: Path, scan: np.ndarray, labels: np.ndarray, entries: list[str]
) -> None:
    prediction = labels.copy()
    prediction[3] = 0
    prediction[5] = 2
    volumes = [stored(voxels, (0, 1, 2), (False,) * 3) for voxels in (scan, prediction, labels)]
    volumes[1].segment_names = {1: "cost in $, not $maths", 7: "not found"}
    path = contact_sheet(*volumes[:2], tmp_path / "new" / "sheet.png", volumes[2], painted=[5], title="a $ b $ c")
    colours = picture(path)[..., :3].reshape(-1, 3)
    assert (np.abs(colours - np.array([1.0, 0xD6 / 255, 0.0])) < 0.02).all(axis=1).sum() > 1000  # the frame
    # 11 slices count, one of which is missed; labels 2 (a mistake on the painted slice) and 7 are in neither
    assert entries == [
        f"cost in $, not $maths  Dice {2 * 10 / 21:.3f}",
        "label 2  Dice 1.000",
        "not found  Dice 1.000",
        "reference",
        "painted slice",
    ]
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_an_empty_segmentation_of_an_empty_scan_is_drawn(tmp_path: Path) -> None:
    nothing = stored(np.zeros(SIZES, dtype=np.uint8), (0, 1, 2), (False,) * 3)
    assert picture(contact_sheet(nothing, nothing, tmp_path / "sheet.png")).shape[1] == SHEET_WIDTH * DOTS_PER_INCH


def test_the_slices_cover_the_structure_and_a_margin() -> None:
    holding = np.zeros(100, dtype=bool)
    holding[20:80] = True
    chosen = chosen_slices(holding, [50], 24, 6)
    assert len(chosen) == 24 and chosen[0] == 14 and chosen[-1] == 85 and 50 in chosen
    assert max(np.diff(chosen)) <= 5  # evenly, but for the painted one

    holding[:] = False
    holding[40:44] = True
    assert chosen_slices(holding, [], 24, 6) == [39, 40, 41, 42, 43, 44]
    holding[44] = True
    assert chosen_slices(holding, [], 24, 6) == list(range(36, 48))  # two full rows

    assert chosen_slices(np.zeros(10, dtype=bool), [], 24, 6) == list(range(10))
    assert chosen_slices(np.zeros(100, dtype=bool), [7], 24, 6) == list(range(4, 10))
    assert chosen_slices(np.ones(1, dtype=bool), [0], 24, 6) == [0]
    painted = list(range(0, 100, 3))
    assert len(chosen_slices(np.ones(100, dtype=bool), painted, 24, 6)) == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("name", r"\.png"),
        ("grid", "reference does not lie"),
        ("slice", "0 to 11"),
        ("axis", "axis 3"),
        ("folder", "write"),
    ],
)
def test_bad_requests_leave_nothing_behind(
    tmp_path: Path, scan: np.ndarray, labels: np.ndarray, change: str, message: str
) -> None:
    as_is = ((0, 1, 2), (False,) * 3)
    (tmp_path / "file").write_text("")
    path = tmp_path / {"name": "sheet.jpg", "folder": "file/sheet.png"}.get(change, "sheet.png")
    with pytest.raises(InputError, match=message):
        contact_sheet(
            stored(scan, *as_is),
            stored(labels, *as_is),
            path,
            stored(labels, (0, 1, 2), (True, False, False)) if change == "grid" else None,
            axis=3 if change == "axis" else 0,
            painted=[12] if change == "slice" else [],
        )
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_matplotlib_is_loaded_when_a_sheet_is_drawn_and_not_before() -> None:
    import subprocess
    import sys

    code = "import sys, SDFSMISLib.evaluation; print({'matplotlib', 'SimpleITK', 'rich', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
