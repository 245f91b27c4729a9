"""The pictures of the tutorial: the panel on the stand-in for Slicer's Qt side, with a real scene and backend.

    python Testing/panel_pictures.py FOLDER

The scan is the MNI152 head of `sdfsmis demo`. Its lateral ventricles are painted on one coronal slice, as a user would,
and segmented by the built-in weights in a process of its own. The "next patient" is the same head, warped and with
noise. ``loop.gif`` shows the steps one after the other. The pictures are looked at before they are committed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT / "SDFSMIS"), str(ROOT)]

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from scipy import ndimage  # noqa: E402

from mrml_scene import SegmentEditor  # noqa: E402
from SDFSMISLib.cli.demo import read_head  # noqa: E402
from SDFSMISLib.images.planes import Plane  # noqa: E402
from SDFSMISLib.images.volume import Volume  # noqa: E402
from SDFSMISLib.scene.frame import ijk_to_ras  # noqa: E402
from SDFSMISLib.workbench.views import BackendChoice, BackendKind  # noqa: E402
from slicer_standin import install  # noqa: E402

PAINTED = Plane(1, 134)  # coronal slice
NAME, COLOR = "Ventricles", (0.95, 0.45, 0.35)
SETTINGS = "/home/you/.config/slicer.org/Slicer.ini"  # shown in place of a temporary folder
SERVER = "https://gpu.example.org:7861"
OFFSETS = {"Red": 20.0, "Yellow": -13.0, "Green": -18.0}  # mm, of the views
ZOOM = 0.8
SIZE = (1280, 860)  # pixels of the window
MARGIN = 6  # pixels
COLORS = 128  # of a picture, beside greys
LOOP = {  # pictures of the moving picture, in order: what is written above each, and how long it stays, in ms
    "painted": ("1. Paint the structure on one slice", 3000),
    "running": ("2. Segment: slices appear as they are finished", 2500),
    "wrong": ("3. Look where one more slice would help most", 3500),
    "right": ("4. Make it right in that view", 3000),
    "corrected": ("5. Segment again: both views together give the structure", 4500),
}
CAPTION = 48  # pixels; the height of the line above a picture of the loop
PATIENCE = 120.0  # seconds of one step; the first starts the backend


def ventricles(scan: Volume, plane: Plane) -> np.ndarray:
    """What a user paints on a slice of any view: uint8 ``(slices, height, width)`` of the head's lateral ventricles."""
    z, y, x = (np.arange(side) for side in scan.voxels.shape)
    left, up, front = abs(x - 98)[None, None, :], (z - 72)[:, None, None], (y - 134)[None, :, None]  # mm of MNI
    near = (left > 1) & (left < 34) & (up > 2) & (up < 32) & (front > -60) & (front < 42)
    near &= (front > -15) | (left > 9)  # the spaces between, farther back, are no ventricles
    dark = (scan.voxels > 0) & (scan.voxels < 120)
    mask = np.zeros(scan.voxels.shape, dtype=np.uint8)
    pieces, count = ndimage.label(np.moveaxis(dark & near, plane.axis, 0)[plane.index])
    sizes = ndimage.sum_labels(pieces > 0, pieces, range(1, count + 1))
    large = np.flatnonzero(sizes >= sizes.max() / 10) + 1
    np.moveaxis(mask, plane.axis, 0)[plane.index] = np.isin(pieces, large)
    return mask


def next_patient(scan: Volume) -> Volume:
    """Another head: this one warped, under another contrast, with noise."""
    random = np.random.default_rng(5)
    places = np.indices(scan.voxels.shape, dtype=np.float32)
    for axis, side in enumerate(scan.voxels.shape):
        bend = ndimage.gaussian_filter(random.normal(size=scan.voxels.shape).astype(np.float32), 24)
        middle = (side - 1) / 2
        places[axis] = (places[axis] - middle) * (1.06, 0.97, 1.08)[axis] + middle + bend * (5 / np.abs(bend).max())
    warped = ndimage.map_coordinates(scan.voxels, places, output=np.float32, order=1)
    grey = 240 * (warped / 255) ** 1.2 + random.normal(0, 5, warped.shape) * (warped > 0)
    return Volume(np.clip(grey, 0, 255).astype(np.uint8), scan.geometry)


class Pictures:
    """Goes through the tutorial as a user does; each step leaves pictures in ``folder``."""

    def __init__(self, standin: Any, folder: Path) -> None:
        import slicer

        self._standin, self._folder, self._slicer = standin, folder, slicer
        slicer.app.slicerUserSettingsFilePath = SETTINGS
        module = standin.load_module(ROOT / "SDFSMIS" / "SDFSMIS.py")
        widget = module.open()
        self._ui, self._workbench = widget.ui, widget.panel.workbench
        self._window = standin.main_window(module.parent)
        self._window.resize(*SIZE)
        self._head = read_head().scan
        self._volume = self._load(self._head, "Head")

    def make(self) -> None:
        self._save("start")
        self._paint()
        self._install()
        self._segment()
        self._correct()
        self._next_patient()
        self._server()
        if self._standin.errors:
            raise SystemExit(f"The panel failed: {self._standin.errors}")

    # -- the steps -----------------------------------------------------------------------------------------------------

    def _paint(self) -> None:
        segment = self._segmentation().GetSegmentation().AddEmptySegment(NAME, NAME, COLOR)
        self._editor().paint(segment, ventricles(self._head, PAINTED))
        self._until(lambda: len(self._workbench.support.view.entries) == 1)
        self._workbench.support.show(self._workbench.support.view.entries[0].key)
        self._save("painted")

    def _install(self) -> None:
        """What is asked before anything is installed; then a Python that has it already is named instead."""
        self._ui.runButton.click()
        self._until(lambda: self._workbench.questions.view is not None)
        self._save("install", self._ui.questionFrame, self._ui.questionFrame)
        self._ui.declineButton.click()
        self._workbench.backend.choose(BackendChoice(BackendKind.LOCAL, python=sys.executable))

    def _segment(self) -> None:
        self._ui.runButton.click()
        self._until(lambda: (self._workbench.run.view.fraction or 0) > 0.3 or not self._workbench.run.view.running)
        self._save("running")
        self._end_run()
        self._ui.supportCollapsibleButton.collapsed = True
        self._save("review")

    def _correct(self) -> None:
        """The slice that is suggested is made right in the view that shows it."""
        self._until(lambda: self._ui.suggestionButton.enabled)
        name = self._workbench.review.view.suggestion
        print(f"Suggested: {name}")
        self._ui.suggestionButton.click()
        self._until(lambda: self._workbench.review.view.shown == name)
        self._save("wrong")
        view, _space, index = name.partition(" ")
        plane = Plane(("axial", "coronal", "sagittal").index(view), int(index))
        right, result = ventricles(self._head, plane), self._segmentation().GetSegmentation().GetSegmentIDs()[1]
        everything = np.zeros_like(right)
        np.moveaxis(everything, plane.axis, 0)[plane.index] = 1
        self._editor().erase(result, everything)
        self._editor().paint(result, right)
        self._until(lambda: len(self._workbench.support.view.entries) == 2)
        self._until(lambda: self._workbench.review.view.shown == name)
        self._ui.sliceRightButton.click()
        self._until(lambda: any(entry.origin == "right" for entry in self._workbench.support.view.entries))
        self._save("right")
        self._ui.runButton.click()
        self._end_run()
        self._ui.supportCollapsibleButton.collapsed, self._ui.reviewCollapsibleButton.collapsed = False, True
        self._save("corrected")
        self._ui.acceptButton.click()
        self._until(lambda: not self._workbench.review.view.results)

    def _next_patient(self) -> None:
        """The slices are saved; after that they are all that is known of the first scan."""
        chosen = self._folder / "ventricles.safetensors"
        self._standin.dialogs.answers.update(getSaveFileName=str(chosen), getOpenFileName=str(chosen))
        self._ui.saveSupportButton.click()
        self._until(lambda: not self._workbench.run.view.running)
        self._standin.close_scene()
        self._volume = self._load(next_patient(self._head), "Next patient")
        self._ui.loadSupportButton.click()
        chosen.unlink()
        self._until(lambda: len(self._workbench.support.view.entries) == 2)
        self._ui.runButton.click()
        self._end_run()
        self._save("next-patient")

    def _server(self) -> None:
        """What is asked before anything is sent; it is declined."""
        self._workbench.backend.choose(BackendChoice(BackendKind.SERVER, url=SERVER))
        self._ui.backendCollapsibleButton.collapsed = False
        self._until(lambda: self._ui.runButton.enabled)
        self._ui.runButton.click()
        self._until(lambda: self._workbench.questions.view is not None)
        self._save("server", self._ui.questionFrame, self._ui.backendCollapsibleButton)
        self._ui.declineButton.click()

    # -- within --------------------------------------------------------------------------------------------------------

    def _load(self, scan: Volume, name: str) -> Any:
        """The volume node, shown in all views."""
        volume = self._slicer.util.addVolumeFromArray(scan.voxels, ijkToRAS=ijk_to_ras(scan.geometry), name=name)
        volume.CreateDefaultDisplayNodes()
        self._standin.process(0.3)  # the views get their size
        self._standin.show_volume(volume)
        for view in self._views():
            width, height, depth = view.GetFieldOfView()
            view.SetFieldOfView(width * ZOOM, height * ZOOM, depth)
        self._look(**OFFSETS)
        return volume

    def _views(self) -> list[Any]:
        return self._slicer.util.getNodesByClass("vtkMRMLSliceNode")

    def _look(self, **offsets: float) -> None:
        """Moves views, by name, to where they show most; mm."""
        for view in self._views():
            view.SetSliceOffset(offsets.get(view.GetName(), view.GetSliceOffset()))

    def _editor(self) -> SegmentEditor:
        """Strokes of a mouse; the editor of the panel is looked at only."""
        return SegmentEditor(SimpleNamespace(node=self._slicer.mrmlScene), self._segmentation(), self._volume)

    def _segmentation(self) -> Any:
        return self._ui.segmentationSelector.currentNode()

    def _end_run(self) -> None:
        self._until(lambda: not self._workbench.run.view.running)
        if self._workbench.run.view.failed:
            raise SystemExit(self._workbench.run.view.text)
        self._until(
            lambda: self._workbench.review.view.results and self._workbench.review.view.results[0].volume_ml is not None
        )
        self._until(lambda: self._ui.suggestionButton.enabled)
        print(
            f"{self._workbench.review.view.results[0].volume_ml:.1f} ml", *self._workbench.run.view.notes
        )  # the tutorial names these

    def _until(self, condition: Callable[[], Any]) -> None:
        if not self._standin.process(PATIENCE, until=condition):
            raise SystemExit(f"It did not come: {self._workbench.run.view}, {self._workbench.backend.view}")

    def _save(self, name: str, first: Any = None, last: Any = None) -> None:
        """A picture of the window; or of the panel alone, from one widget to another below it."""
        self._standin.process(0.4)
        path = self._folder / f"{name}.png"
        self._standin.screenshot(self._window, path)
        picture = Image.open(path).convert("RGB")
        if first is not None:
            (left, top, *_), (*_, right, bottom) = self._box(first), self._box(last)
            picture = picture.crop((left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN))
        few_colors(picture).save(path, optimize=True)
        print(f"{path} {picture.width} x {picture.height}, {path.stat().st_size / 1e3:.0f} kB")

    def _box(self, widget: Any) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of a widget in the window."""
        native, window = widget._native, self._window._native
        corners = (native.mapTo(window, corner) for corner in (native.rect().topLeft(), native.rect().bottomRight()))
        return tuple(part for corner in corners for part in (corner.x(), corner.y()))


def few_colors(picture: Image.Image) -> Image.Image:
    """The picture with a palette: greys for the scan, and colours, each of which counts as much if it is rare."""
    pixels = np.asarray(picture).reshape(-1, 3)
    colored = np.unique(pixels[np.ptp(pixels.astype(int), axis=1) > 6], axis=0)
    palette = Image.fromarray(colored[None]).quantize(COLORS).getpalette()[: 3 * COLORS]
    greys = np.repeat(np.linspace(0, 255, 256 - COLORS).round().astype(int), 3).tolist()
    wanted = Image.new("P", (1, 1))
    wanted.putpalette(greys + palette)
    return picture.quantize(palette=wanted, dither=Image.Dither.NONE)


def write_loop(folder: Path) -> None:
    """The moving picture of the README, from the pictures in ``folder``."""
    frames = []
    for name, (text, _) in LOOP.items():
        picture = Image.open(folder / f"{name}.png").convert("RGB")
        frame = Image.new("RGB", (picture.width, picture.height + CAPTION), "#303030")
        frame.paste(picture, (0, CAPTION))
        ImageDraw.Draw(frame).text((16, CAPTION / 2), text, "white", ImageFont.load_default(28), anchor="lm")
        frames.append(few_colors(frame))
    path, durations = folder / "loop.gif", [duration for _, duration in LOOP.values()]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
    print(f"{path} {frames[0].width} x {frames[0].height}, {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("Name one folder for the pictures: python Testing/panel_pictures.py FOLDER")
    folder, began = Path(sys.argv[1]), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    standin = install()
    try:
        Pictures(standin, folder).make()
    finally:
        standin.uninstall()
    write_loop(folder)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
