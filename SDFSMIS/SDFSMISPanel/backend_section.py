"""Step 1, Computing: on this computer or on a server, and whether that works."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import qt
from slicer.i18n import tr as _

from SDFSMISLib.client import Client
from SDFSMISLib.errors import InputError
from SDFSMISLib.workbench.settings import Settings
from SDFSMISLib.workbench.views import BackendChoice, BackendKind, BackendView
from SDFSMISPanel.controls import Control, dot

if TYPE_CHECKING:
    from SDFSMISLib.workbench import Workbench

__all__ = ["BackendSection"]

LOG = logging.getLogger("SDFSMIS")
DEVICES = ("auto", "cpu", "cuda")  # as the .ui lists them
PAUSE = 500  # ms without a key, after which an address counts as typed
COLORS = {"good": (0.2, 0.65, 0.3), "unknown": (0.6, 0.6, 0.6), "busy": (0.25, 0.5, 0.9), "bad": (0.85, 0.25, 0.2)}


class BackendSection:
    """Shows a :class:`.BackendView`; the choice of the user is kept in the settings."""

    def __init__(self, ui: Any, workbench: Workbench, settings: Settings) -> None:
        self._ui, self._workbench, self._settings = ui, workbench, settings
        self._shown: BackendView | None = None
        self._agreed: BackendChoice | None = None  # of the controls, when they and the workbench agreed last
        self._hosts: tuple[str, ...] = ()
        self._dots = {state: dot(color) for state, color in COLORS.items()}
        self._install, self._remove = Control(ui.installButton), Control(ui.removeInstallationButton)
        self._test = Control(ui.testBackendButton)
        self._pause = qt.QTimer()
        self._pause.setSingleShot(True)
        self._pause.setInterval(PAUSE)
        workbench.backend.choose(settings.choice())
        self._connect()

    def show(self) -> None:
        """Show the chosen backend."""
        view = self._workbench.backend.view
        if view is self._shown:
            return
        before, self._shown = self._shown, view
        started = view.progress is not None and (before is None or before.progress is None)
        if started or view.state == "bad" and (before is None or before.state != "bad"):
            self._ui.backendCollapsibleButton.collapsed = False  # something is to be seen here
        self._show_hosts(view)
        self._show_choice(view.choice)
        self._agreed = view.choice
        self._show_state(view)

    def choice(self) -> BackendChoice:
        """The backend as the controls name it."""
        ui = self._ui
        return BackendChoice(
            kind=BackendKind.SERVER if ui.serverRadioButton.checked else BackendKind.LOCAL,
            url=ui.serverComboBox.currentText.strip(),
            token=ui.tokenLineEdit.text.strip(),
            certificate=ui.certificateLineEdit.text.strip(),
            python=ui.pythonLineEdit.text.strip(),
            device=DEVICES[ui.deviceComboBox.currentIndex],
            model=ui.modelLineEdit.text.strip() or BackendChoice.model,
            pip_options=ui.pipOptionsLineEdit.text.strip(),
        )

    def take_over(self) -> None:
        """Choose the backend of the controls: a field signals its text only when the keyboard leaves it."""
        choice = self.choice()
        if choice in (self._agreed, self._workbench.backend.view.choice):  # nothing was typed
            return
        self._agreed = choice
        LOG.info("Backend chosen: %s", _described(choice))
        self._settings.keep_choice(choice)
        self._workbench.backend.choose(choice)

    def close(self) -> None:
        """Ignore an address that is being typed."""
        self._pause.stop()

    # -- what the user does

    def _connect(self) -> None:
        ui = self._ui
        ui.localRadioButton.connect("toggled(bool)", self._on_choice)
        ui.serverComboBox.connect("activated(int)", self._on_choice)
        ui.serverComboBox.lineEdit().connect("editingFinished()", self.take_over)
        ui.serverComboBox.connect("editTextChanged(QString)", self._on_typed)
        self._pause.connect("timeout()", self.take_over)
        ui.deviceComboBox.connect("activated(int)", self._on_choice)
        for name in ("token", "certificate", "python", "model", "pipOptions"):
            getattr(ui, f"{name}LineEdit").connect("editingFinished()", self.take_over)
        ui.testBackendButton.connect("clicked()", self._on_test)
        ui.installButton.connect("clicked()", self._on_install)
        ui.removeInstallationButton.connect("clicked()", self._workbench.backend.remove)
        ui.cancelInstallationButton.connect("clicked()", self._workbench.backend.cancel_installation)

    def _on_choice(self, _value: object) -> None:
        self.take_over()

    def _on_typed(self, _text: str) -> None:
        """An address may enable buttons, which are clicked before the keyboard leaves the field."""
        self._pause.start()

    def _on_test(self) -> None:
        self.take_over()
        self._workbench.backend.test()

    def _on_install(self) -> None:
        self.take_over()
        self._workbench.backend.install()

    # -- what is shown

    def _show_hosts(self, view: BackendView) -> None:
        if view.hosts == self._hosts:
            return
        self._hosts, box = view.hosts, self._ui.serverComboBox
        typed = box.currentText
        box.blockSignals(True)
        box.clear()
        box.addItems(list(view.hosts))
        box.setEditText(typed)
        box.blockSignals(False)

    def _show_choice(self, choice: BackendChoice) -> None:
        ui, server = self._ui, choice.kind is BackendKind.SERVER
        ui.localRadioButton.blockSignals(True)  # the only one that is listened to; each of the two changes the other
        ui.serverRadioButton.checked, ui.localRadioButton.checked = server, not server
        ui.localRadioButton.blockSignals(False)
        ui.deviceComboBox.currentIndex = DEVICES.index(choice.device) if choice.device in DEVICES else 0
        box = ui.serverComboBox
        if not box.lineEdit().focus and box.currentText != choice.url:
            box.setEditText(choice.url)
        texts = (
            (ui.tokenLineEdit, choice.token),
            (ui.certificateLineEdit, choice.certificate),
            (ui.pythonLineEdit, choice.python),
            (ui.modelLineEdit, "" if choice.model == BackendChoice.model else choice.model),
            (ui.pipOptionsLineEdit, choice.pip_options),
        )
        for field, text in texts:
            if not field.focus and field.text != text:  # what is being typed stays
                field.text = text

    def _show_state(self, view: BackendView) -> None:
        ui, server = self._ui, view.choice.kind is BackendKind.SERVER
        ui.backendCollapsibleButton.text = _("1. Computing: a server") if server else _("1. Computing: this computer")
        ui.serverFrame.visible = ui.serverAdvancedFrame.visible = server
        ui.localAdvancedFrame.visible = not server
        ui.backendStateLabel.setPixmap(self._dots.get(view.state, self._dots["unknown"]))
        ui.backendStatusLabel.text = view.status
        installing = view.progress is not None
        ui.installationProgressBar.visible = ui.cancelInstallationButton.visible = installing
        if view.progress is not None:
            ui.installationProgressBar.value = round(100 * view.progress)
        own = not server and not view.choice.python
        ui.installButton.visible = ui.removeInstallationButton.visible = own
        ui.installButton.text = _("Install again...") if view.can_remove else _("Install...")
        wait = _("Wait until this has ended.") if view.state == "busy" else ""
        self._install.allow("" if view.can_install else wait or _("Nothing has to be installed."))
        self._remove.allow("" if view.can_remove else wait or _("Nothing was installed."))
        self._test.allow(wait or (_("Type the address of the server first.") if server and not view.choice.url else ""))


def _described(choice: BackendChoice) -> str:
    """The backend for the log, which people pass on: never with a password."""
    if choice.kind is BackendKind.LOCAL:
        return "this computer"
    try:
        return f"server {Client(choice.url).host}"
    except InputError:
        return "server with an invalid address"
