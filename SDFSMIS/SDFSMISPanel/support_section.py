"""Step 2, What to find: the painted scan, its structures, and the list of examples with their pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
from slicer.i18n import tr as _

from SDFSMISLib.workbench.settings import Settings
from SDFSMISLib.workbench.views import SegmentView, SupportSliceView, SupportView
from SDFSMISPanel.controls import Control, pixmap, plane_names, square
from SDFSMISPanel.paint_editor import PaintEditor
from SDFSMISPanel.parameter import Parameter, keep_left_out, left_out

if TYPE_CHECKING:
    from SDFSMISLib.workbench import Workbench

ENDING = ".safetensors"


class SupportSlices:
    """The list of examples: shows them, removes them, saves and loads them."""

    def __init__(self, ui: Any, workbench: Workbench, settings: Settings) -> None:
        import qt

        self._qt, self._ui, self._workbench, self._settings = qt, ui, workbench, settings
        self._entries: tuple[SupportSliceView, ...] = ()
        self._remove, self._save = Control(ui.removeSupportButton), Control(ui.saveSupportButton)
        ui.supportList.connect("itemClicked(QListWidgetItem*)", self._on_clicked)
        ui.supportList.connect("itemSelectionChanged()", self._show_buttons)
        ui.removeSupportButton.connect("clicked()", self._on_remove)
        ui.saveSupportButton.connect("clicked()", self._on_save)
        ui.loadSupportButton.connect("clicked()", self._on_load)

    def show(self, entries: tuple[SupportSliceView, ...]) -> None:
        """Show these slices; marked ones stay marked."""
        if entries != self._entries:
            marked = self._marked()
            self._entries = entries
            self._show_entries(marked)
        self._ui.supportList.visible = self._ui.supportListLabel.visible = bool(entries)
        self._show_buttons()

    def _show_entries(self, marked: list[str]) -> None:
        items = self._ui.supportList
        items.blockSignals(True)
        items.clear()
        items.addItems([describe(entry) for entry in self._entries])
        for number, entry in enumerate(self._entries):
            item = items.item(number)
            item.setToolTip(describe(entry))  # a long name is cut off
            if entry.thumbnail is not None:
                item.setIcon(self._qt.QIcon(pixmap(entry.thumbnail)))
            item.setSelected(entry.key in marked)
        items.blockSignals(False)
        fit_height(items, len(self._entries), 3)

    def _show_buttons(self) -> None:
        some = bool(self._entries)
        nothing = _("There is no example yet: paint a slice first.")
        self._remove.allow("" if self._marked() else _("Click on a slice in the list first.") if some else nothing)
        self._save.allow("" if some else nothing)

    def _marked(self) -> list[str]:
        items = self._ui.supportList
        return [entry.key for number, entry in enumerate(self._entries) if items.item(number).isSelected()]

    def _on_clicked(self, item: Any) -> None:
        row = self._ui.supportList.row(item)
        if 0 <= row < len(self._entries):
            self._workbench.support.show(self._entries[row].key)

    def _on_remove(self) -> None:
        self._workbench.support.remove(self._marked())

    def _on_save(self) -> None:
        path = self._qt.QFileDialog.getSaveFileName(
            self._ui.saveSupportButton, _("Save examples"), self._settings.folder(), self._filter()
        )
        if path:
            chosen = Path(path) if path.endswith(ENDING) else Path(path + ENDING)
            self._settings.keep_folder(str(chosen.parent))
            self._workbench.run.save_support(chosen)

    def _on_load(self) -> None:
        path = self._qt.QFileDialog.getOpenFileName(
            self._ui.loadSupportButton, _("Load examples"), self._settings.folder(), self._filter()
        )
        if path:
            self._settings.keep_folder(str(Path(path).parent))
            self._workbench.support.load(Path(path))

    def _filter(self) -> str:
        return _("Examples") + f" (*{ENDING})"


def fit_height(items: Any, count: int, most: int) -> None:
    """Set the height of a list to that of its entries, at most ``most``: Slicer gives lists the least height."""
    if count:
        items.minimumHeight = items.maximumHeight = min(count, most) * items.sizeHintForRow(0) + 6


def describe(entry: SupportSliceView) -> str:
    """An example in two lines: slice and structures; scan and origin."""
    what = ", ".join(entry.structures) or _("none of the structures")
    area = _(", {area:.1f} cm²").format(area=entry.area_cm2) if entry.structures else ""
    plane = plane_names().get(entry.plane, entry.plane)
    origin = {
        "painted": _("painted"),
        "chosen": _("chosen"),
        "corrected": _("corrected in part"),
        "right": _("corrected, all of it is right"),
        "file": _("from a file"),
    }.get(entry.origin, entry.origin)
    which = _("{plane} {index}: {what}").format(plane=plane.capitalize(), index=entry.index, what=what)
    return which + area + "\n" + _("{scan}, {origin}").format(scan=entry.scan, origin=origin)


class SupportSection:
    """Shows a :class:`.SupportView`: the scan, the structures that are painted, and the examples.

    Args:
        on_scan: called with the volume node, or None, when another scan is selected.
    """

    def __init__(
        self, ui: Any, workbench: Workbench, settings: Settings, paint: PaintEditor, on_scan: Callable[[Any], None]
    ) -> None:
        import qt

        self._qt, self._ui, self._workbench, self._paint, self._on_scan = qt, ui, workbench, paint, on_scan
        self._slices = SupportSlices(ui, workbench, settings)
        self._parameter: Parameter | None = None
        self._shown: SupportView | None = None
        self._segments: tuple[SegmentView, ...] | None = None
        self._left_out: set[str] = set()
        self._requested: list[str] | None = None  # of the workbench; None = its own default
        self._use_slice, self._every = Control(ui.useSliceButton), Control(ui.everyPaintedCheckBox)
        ui.scanSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._on_node)
        ui.scanSelector.connect("nodeAdded(vtkMRMLNode*)", self._on_scan_added)
        ui.segmentationSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._on_node)
        ui.segmentationSelector.connect("nodeAddedByUserAction(vtkMRMLNode*)", self._on_segmentation_added)
        ui.segmentsList.connect("itemChanged(QListWidgetItem*)", self._on_segment)
        ui.everyPaintedCheckBox.connect("toggled(bool)", self._on_every)
        ui.useSliceButton.connect("clicked()", self._on_use_slice)

    def restore(self, parameter: Parameter | None) -> None:
        """Set the controls to a scene's parameters, and store later changes there; None = store them nowhere."""
        self._parameter = None
        if parameter is not None:
            _choose(self._ui.scanSelector, parameter.scan or _scan_of_views())
            _choose(self._ui.segmentationSelector, parameter.segmentation)
            _choose(self._ui.viewSelector, None)
            self._ui.everyPaintedCheckBox.checked = parameter.every_painted
            self._parameter = parameter
            self._select()
            self._left_out = left_out(parameter)
            self._choose_segments()

    def close_scene(self) -> None:
        """The scene is about to be closed: let go of its nodes."""
        self._parameter = None
        self._workbench.support.select(None, None)

    def show(self) -> None:
        """Show the support set."""
        view = self._workbench.support.view
        if view is self._shown:
            return
        self._shown, ui = view, self._ui
        self._show_segments(view.segments)
        self._choose_segments()
        self._slices.show(view.entries)
        no_scan = "" if ui.scanSelector.currentNode() else _("Load a scan first.")
        self._use_slice.allow(no_scan)
        self._every.allow(no_scan)
        if ui.everyPaintedCheckBox.checked != view.every_painted:
            ui.everyPaintedCheckBox.blockSignals(True)
            ui.everyPaintedCheckBox.checked = view.every_painted
            ui.everyPaintedCheckBox.blockSignals(False)
        hint = no_scan and _("Load a scan first: drop its files on this window, or take one of the Sample Data module.")
        ui.paintHintLabel.text, ui.paintHintLabel.visible = hint, bool(hint)
        ui.supportNotesLabel.text, ui.supportNotesLabel.visible = "\n".join(view.notes), bool(view.notes)

    # -- what the user does

    def _on_node(self, _node: Any) -> None:
        self._select()

    def _on_scan_added(self, scan: Any) -> None:
        """Select the first scan that is loaded while the panel is open."""
        if self._parameter is not None and self._ui.scanSelector.currentNode() is None:
            self._ui.scanSelector.setCurrentNode(scan)

    def _select(self) -> None:
        """Pass on what is selected; if there is no segmentation to paint in, one is made."""
        scan, selector = self._ui.scanSelector.currentNode(), self._ui.segmentationSelector
        if self._parameter is not None and scan is not None and selector.currentNode() is None:
            if not selector.nodeCount():
                _fit(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode"), scan)
            _choose(selector, None)
        segmentation = selector.currentNode()
        if self._parameter is not None:
            if _id(segmentation) != _id(self._parameter.segmentation):  # segments have IDs of their segmentation only
                self._left_out, self._requested = set(), None
                keep_left_out(self._parameter, ())
            self._parameter.scan, self._parameter.segmentation = scan, segmentation
        self._shown = None
        self._paint.edit(scan, segmentation)
        self._on_scan(scan)
        self._workbench.support.select(scan, segmentation)

    def _on_segmentation_added(self, segmentation: Any) -> None:
        scan = self._ui.scanSelector.currentNode()
        if scan is not None:
            _fit(segmentation, scan)

    def _on_segment(self, _item: Any) -> None:
        items, shown = self._ui.segmentsList, enumerate(self._segments or ())
        unchecked = self._qt.Qt.Unchecked
        self._left_out = {one.segment_id for number, one in shown if items.item(number).checkState() == unchecked}
        if self._parameter is not None:
            keep_left_out(self._parameter, self._left_out)
        self._choose_segments(anew=True)

    def _choose_segments(self, anew: bool = False) -> None:
        """Choose all segments except those that were left out; one that was added since is chosen, too."""
        if not (anew or self._left_out or self._requested is not None):
            return
        segments = self._workbench.support.view.segments
        wanted = [one.segment_id for one in segments if one.segment_id not in self._left_out]
        if anew or wanted != self._requested:
            self._requested = wanted
            self._workbench.support.choose_segments(wanted)

    def _on_every(self, every: bool) -> None:
        if self._parameter is not None:
            self._parameter.every_painted = every
        self._workbench.support.use_every_painted(every)

    def _on_use_slice(self) -> None:
        view = self._ui.viewSelector.currentNode()
        if view is not None:
            self._workbench.support.use_slice(view)

    # -- what is shown

    def _show_segments(self, segments: tuple[SegmentView, ...]) -> None:
        if segments == self._segments:
            return
        qt, items = self._qt, self._ui.segmentsList
        items.blockSignals(True)
        if self._segments is None or len(segments) != len(self._segments):
            items.clear()
            items.addItems([segment.name for segment in segments])
        for number, segment in enumerate(segments):
            item = items.item(number)
            item.setText(_painted(segment))
            item.setToolTip(_painted(segment))  # a long name is cut off
            item.setIcon(qt.QIcon(square(segment.color)))
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if segment.chosen else qt.Qt.Unchecked)
        items.blockSignals(False)
        fit_height(items, len(segments), 4)
        self._segments = segments
        self._ui.segmentsList.visible = self._ui.segmentsLabel.visible = bool(segments)


def _painted(segment: SegmentView) -> str:
    if segment.slices is None:
        return segment.name
    if segment.slices == 0:
        return _("{name} - not painted yet").format(name=segment.name)
    if segment.slices == 1:
        return _("{name} - painted on 1 slice").format(name=segment.name)
    return _("{name} - painted on {n} slices").format(name=segment.name, n=segment.slices)


def _id(node: Any | None) -> str:
    return node.GetID() if node is not None else ""


def _choose(selector: Any, node: Any | None) -> None:
    """Select a node; without one, the first in the list, unless one is selected already."""
    if node is not None:
        selector.setCurrentNode(node)
    if selector.currentNode() is None and selector.nodeCount():
        selector.setCurrentNodeIndex(0)


def _scan_of_views() -> Any | None:
    """The volume that the slice views show."""
    active = slicer.app.applicationLogic().GetSelectionNode().GetActiveVolumeID()
    return slicer.mrmlScene.GetNodeByID(active) if active else None


def _fit(segmentation: Any, scan: Any) -> None:
    """Set up a new segmentation for a scan: shown, with its geometry and its transform."""
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(scan)
    segmentation.SetAndObserveTransformNodeID(scan.GetTransformNodeID())
