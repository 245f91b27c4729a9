"""The list of support slices: each with its picture; what is taken out of it, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from SDFSMISPanel.control import Control
from SDFSMISPanel.panel_logic import PanelLogic, SupportEntry
from SDFSMISPanel.pictures import pixmap
from SDFSMISPanel.settings import Settings

__all__ = ["SupportSlices"]

ENDING = ".safetensors"


class SupportSlices:
    """Shows the entries of a :class:`.panel_logic.SupportView`."""

    def __init__(self, ui: Any, logic: PanelLogic, settings: Settings) -> None:
        import qt

        self._qt, self._ui, self._logic, self._settings = qt, ui, logic, settings
        self._entries: tuple[SupportEntry, ...] = ()
        self._remove, self._save = Control(ui.removeSupportButton), Control(ui.saveSupportButton)
        ui.supportList.connect("itemClicked(QListWidgetItem*)", self._on_clicked)
        ui.supportList.connect("itemSelectionChanged()", self._show_buttons)
        ui.removeSupportButton.connect("clicked()", self._on_remove)
        ui.saveSupportButton.connect("clicked()", self._on_save)
        ui.loadSupportButton.connect("clicked()", self._on_load)

    def show(self, entries: tuple[SupportEntry, ...]) -> None:
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
        nothing = _("There is no slice yet: paint one first.")
        self._remove.allow("" if self._marked() else _("Click on a slice in the list first.") if some else nothing)
        self._save.allow("" if some else nothing)

    def _marked(self) -> list[str]:
        items = self._ui.supportList
        return [entry.key for number, entry in enumerate(self._entries) if items.item(number).isSelected()]

    def _on_clicked(self, item: Any) -> None:
        row = self._ui.supportList.row(item)
        if 0 <= row < len(self._entries):
            self._logic.show_support(self._entries[row].key)

    def _on_remove(self) -> None:
        self._logic.remove_support(self._marked())

    def _on_save(self) -> None:
        path = self._qt.QFileDialog.getSaveFileName(
            self._ui.saveSupportButton, _("Save support slices"), self._settings.folder(), self._filter()
        )
        if path:
            chosen = Path(path) if path.endswith(ENDING) else Path(path + ENDING)
            self._settings.keep_folder(str(chosen.parent))
            self._logic.save_support(chosen)

    def _on_load(self) -> None:
        path = self._qt.QFileDialog.getOpenFileName(
            self._ui.loadSupportButton, _("Load support slices"), self._settings.folder(), self._filter()
        )
        if path:
            self._settings.keep_folder(str(Path(path).parent))
            self._logic.load_support(Path(path))

    def _filter(self) -> str:
        return _("Support slices") + f" (*{ENDING})"


def fit_height(items: Any, count: int, most: int) -> None:
    """Makes a list as high as its entries, of which it shows ``most`` at once: Slicer's panel makes lists lowest."""
    if count:
        items.minimumHeight = items.maximumHeight = min(count, most) * items.sizeHintForRow(0) + 6


def describe(entry: SupportEntry) -> str:
    """Two lines: which slice it is and what it shows; where it comes from."""
    what = ", ".join(entry.structures) or _("none of the structures")
    area = _(", {area:.1f} cm²").format(area=entry.area_cm2) if entry.structures else ""
    plane = {"axial": _("axial"), "coronal": _("coronal"), "sagittal": _("sagittal")}.get(entry.plane, entry.plane)
    origin = {
        "painted": _("painted"),
        "chosen": _("chosen"),
        "corrected": _("corrected"),
        "file": _("from a file"),
    }.get(entry.origin, entry.origin)
    which = _("Slice {index}, {plane}: {what}").format(index=entry.index, plane=plane, what=what)
    return which + area + "\n" + _("{scan}, {origin}").format(scan=entry.scan, origin=origin)
