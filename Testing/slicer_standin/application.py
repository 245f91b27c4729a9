"""slicer.app: the application, on top of the process's QApplication."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import slicer
from PySide6.QtCore import Property, QCoreApplication, QProcessEnvironment, QSettings, Signal
from PySide6.QtWidgets import QApplication

from slicer_standin.layout_manager import qSlicerLayoutManager
from slicer_standin.module_manager import qSlicerModuleManager
from slicer_standin.widgets.kept import kept

MAJOR, MINOR = 5, 12


class qSlicerApplication(QApplication):
    """One per process, as Qt wants it; :meth:`start` gives it a new scene and new settings."""

    startupCompleted = Signal()
    renderPaused = Signal(bool)
    mrmlSceneChanged = Signal(object)
    urlReceived = Signal(str)
    aboutToQuit = Signal()

    slicerHome = kept(str, "")
    temporaryPath = kept(str, "")
    defaultScenePath = kept(str, "")
    cachePath = kept(str, "")
    extensionsInstallPath = kept(str, "")
    startupWorkingPath = kept(str, "")
    slicerUserSettingsFilePath = kept(str, "")
    slicerRevisionUserSettingsFilePath = kept(str, "")
    launcherExecutableFilePath = kept(str, "")
    documentationBaseUrl = kept(str, "https://slicer.readthedocs.io/en/5.12")
    documentationLanguage = kept(str, "en")

    majorVersion = Property(int, lambda self: MAJOR)
    minorVersion = Property(int, lambda self: MINOR)
    revision = Property(str, lambda self: "34000")
    repositoryRevision = Property(str, lambda self: "34000")
    releaseType = Property(str, lambda self: "Stable")
    isInstalled = Property(bool, lambda self: True)
    isCustomMainApplication = Property(bool, lambda self: False)
    mainApplicationName = Property(str, lambda self: "Slicer")
    mainApplicationMajorVersion = Property(int, lambda self: MAJOR)
    mainApplicationMinorVersion = Property(int, lambda self: MINOR)
    platform = Property(str, lambda self: "linux-amd64")
    os = Property(str, lambda self: "linux")
    arch = Property(str, lambda self: "amd64")

    def start(self, folder: Path, scene: Any, application_logic: Any) -> None:
        """A new session: folders and settings in ``folder``, views of ``scene``."""
        self.setOrganizationName("Standin")
        self.setApplicationName("Slicer")
        self.slicerHome, self.startupWorkingPath = str(folder / "home"), os.getcwd()
        self.temporaryPath = str(folder / "temporary")
        self.cachePath = str(folder / "cache")
        self.extensionsInstallPath = str(folder / "extensions")
        for path in (self.slicerHome, self.temporaryPath, self.cachePath, self.extensionsInstallPath):
            Path(path).mkdir(parents=True, exist_ok=True)
        QSettings.setDefaultFormat(QSettings.Format.IniFormat)
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(folder / "settings"))
        self._settings = QSettings()
        self.slicerUserSettingsFilePath = self._settings.fileName()
        self._revision_settings = QSettings(str(folder / "revision.ini"), QSettings.Format.IniFormat)
        self.slicerRevisionUserSettingsFilePath = self._revision_settings.fileName()
        self._scene, self._logic = scene, application_logic
        self._layout = qSlicerLayoutManager(scene, application_logic)
        self._modules = qSlicerModuleManager()
        self._testing = False
        self._restarts = 0

    def ended(self) -> tuple[Any, ...]:
        """What a session made of Qt, to destroy."""
        return self._layout.viewport(), self._layout, self._modules

    def application(self) -> Any:
        return self

    def mrmlScene(self) -> Any:
        return self._scene

    def applicationLogic(self) -> Any:
        return self._logic

    def moduleLogic(self, name: str) -> Any:
        return self._logic.GetModuleLogic(name)

    def moduleManager(self) -> Any:
        return self._modules

    def layoutManager(self) -> Any:
        return self._layout

    def mainWindow(self) -> Any:
        return next((w for w in QApplication.topLevelWidgets() if w.objectName() == "qSlicerMainWindow"), None)

    def userSettings(self) -> QSettings:
        return self._settings

    settings = userSettings

    def revisionUserSettings(self) -> QSettings:
        return self._revision_settings

    def testingEnabled(self) -> bool:
        return self._testing

    def testAttribute(self, attribute: Any) -> bool:
        if attribute == 1001:
            return self._testing
        return QCoreApplication.testAttribute(attribute)

    def startupEnvironment(self) -> QProcessEnvironment:
        return QProcessEnvironment.systemEnvironment()

    environment = startupEnvironment

    def setEnvironmentVariable(self, name: str, value: str) -> None:
        os.environ[name] = value

    def moduleDocumentationUrl(self, name: str) -> str:
        return f"{self.documentationBaseUrl}/user_guide/modules/{name.lower()}.html"

    def setRenderPaused(self, paused: bool) -> None:
        self._layout.setRenderPaused(paused)
        self.renderPaused.emit(paused)

    def pauseRender(self) -> None:
        self.setRenderPaused(True)

    def resumeRender(self) -> None:
        self.setRenderPaused(False)

    def restart(self) -> None:
        """Counted, never done."""
        self._restarts += 1

    def openNodeModule(self, node: Any) -> None:
        slicer.util.selectModule("Data")

    def toSlicerHomeAbsolutePath(self, path: str) -> str:
        return str(Path(self.slicerHome) / path)
