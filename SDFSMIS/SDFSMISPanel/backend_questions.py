"""Backend questions: what is asked before anything is installed, removed, or sent to another computer."""

from __future__ import annotations

from pathlib import Path

from slicer.i18n import tr as _

from SDFSMISPanel.panel_logic import Question

__all__ = [
    "INSTALL",
    "REMOVE",
    "SEND_SLICES",
    "install_question",
    "remove_question",
    "slices_question",
]

INSTALL, REMOVE, SEND_SLICES = "install", "remove", "send slices"  # keys of the answers


def install_question(folder: Path) -> Question:
    """Before packages are downloaded into the folder of the environment."""
    text = _(
        "Segmenting on this computer needs Python packages (PyTorch and others): 0.5 to 4 GB to download, 3 to 9 "
        "GB on the disk, by the kind of computer. They go into an environment of their own, {folder}; Slicer's own "
        "packages stay as they are, and it can be removed again. No image leaves this computer. Install them now?"
    )
    return Question(INSTALL, text.format(folder=folder), _("Install"), _("Not now"))


def remove_question(folder: Path) -> Question:
    """Before that folder is removed."""
    text = _("Remove the Python environment of SDFSMIS, {folder}? Segmenting on this computer needs it.")
    return Question(REMOVE, text.format(folder=folder), _("Remove"), _("Keep it"))


def slices_question(host: str) -> Question:
    """Before a run on another computer; the answer holds for later runs, too."""
    text = _(
        "To segment on {host}, these are sent there over the network: grey values of the slices that are needed, "
        "painted masks, and the geometry of the slices. Names of patients, files and segments are not sent, but "
        "images can show a person. SDFSMIS keeps the slices in that computer's memory and writes them to no disk. "
        "Send them, now and later?"
    )
    return Question(SEND_SLICES, text.format(host=host), _("Send to {host}").format(host=host), _("Do not send"))
