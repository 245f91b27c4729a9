"""The panel's first step: what computes is chosen, tested, installed and asked about; on a stand-in for Slicer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")


if TYPE_CHECKING:
    from panel_fixtures import Shown

pytest_plugins = ["panel_fixtures"]


def test_a_choice_of_the_backend_reaches_the_workbench_and_is_remembered_without_its_token(shown: Shown) -> None:
    ui = shown.ui
    ui.serverRadioButton.click()
    ui.serverComboBox.setEditText(" http://gpu.example.org:7861 ")
    ui.tokenLineEdit.text = "secret"
    ui.certificateLineEdit.text = "/certificates/gpu.pem"
    ui.certificateLineEdit.editingFinished()
    choice = shown.workbench.calls_of("backend.choose")[-1][0]
    assert (choice.kind.value, choice.url, choice.token) == ("server", "http://gpu.example.org:7861", "secret")
    assert choice.certificate == "/certificates/gpu.pem"
    kept = str(slicer.app.userSettings().value("SDFSMIS/backend"))
    assert "gpu.example.org" in kept and "secret" not in kept


def test_the_backend_on_this_computer_is_set_under_advanced(shown: Shown) -> None:
    ui = shown.ui
    ui.deviceComboBox.currentIndex = 1
    ui.modelLineEdit.text, ui.pythonLineEdit.text, ui.pipOptionsLineEdit.text = "/models/sd", "/usr/bin/python3", "-q"
    ui.pipOptionsLineEdit.editingFinished()
    choice = shown.workbench.calls_of("backend.choose")[-1][0]
    assert (choice.device, choice.model) == ("cpu", "/models/sd")
    assert (choice.python, choice.pip_options) == ("/usr/bin/python3", "-q")


def test_no_password_of_an_address_or_of_pip_is_written_to_the_settings_or_the_log(
    shown: Shown, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "SDFSMIS")
    ui = shown.ui
    for options in ("--proxy http://dr:geheim@proxy:8080", "--proxy dr:geheim@proxy:8080"):
        ui.pipOptionsLineEdit.text = options
        ui.pipOptionsLineEdit.editingFinished()
        assert shown.workbench.calls_of("backend.choose")[-1][0].pip_options == options
    ui.serverRadioButton.click()
    ui.tokenLineEdit.text = "geheim"
    for address in ("https://dr:geheim@gpu.example.org", "http://gpu.example.org:7861"):
        ui.serverComboBox.setEditText(address)
        ui.serverComboBox.lineEdit().editingFinished()
        assert shown.workbench.calls_of("backend.choose")[-1][0].url == address
        assert "geheim" not in str(slicer.app.userSettings().value("SDFSMIS/backend"))
    assert "geheim" not in caplog.text and "server gpu.example.org:7861" in caplog.text
    assert (
        "never written to disk" in ui.pipOptionsLineEdit.toolTip and "never written to disk" in ui.tokenLineEdit.toolTip
    )


@pytest.mark.parametrize("name", ["token", "certificate", "python", "model", "pipOptions"])
def test_what_was_just_typed_counts_when_segment_is_asked_for(shown: Shown, name: str) -> None:
    field = {"pipOptions": "pip_options"}.get(name, name)
    getattr(shown.ui, f"{name}LineEdit").text = "by button"
    shown.ui.runButton.click()
    assert [call[0] for call in shown.workbench.calls[-2:]] == ["backend.choose", "run.start"]
    assert getattr(shown.workbench.backend.view.choice, field) == "by button"
    getattr(shown.ui, f"{name}LineEdit").text = "by key"
    shown.panel._shortcuts._made[0].activated()
    assert getattr(shown.workbench.backend.view.choice, field) == "by key"
    assert len(shown.workbench.calls_of("run.start")) == 2


@pytest.mark.parametrize(
    ("button", "method"), [("testBackendButton", "backend.test"), ("installButton", "backend.install")]
)
def test_what_was_just_typed_counts_when_the_backend_is_tested_or_installed(
    shown: Shown, button: str, method: str
) -> None:
    shown.ui.pipOptionsLineEdit.text = "--quiet"
    getattr(shown.ui, button).click()
    assert [call[0] for call in shown.workbench.calls[-2:]] == ["backend.choose", method]
    assert shown.workbench.backend.view.choice.pip_options == "--quiet"


def test_where_nothing_was_typed_a_choice_of_the_workbench_stands(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import BackendChoice

    shown.workbench.backend.choose(BackendChoice(python="/usr/bin/python3"))
    shown.ui.runButton.click()  # before the panel shows it
    assert shown.workbench.backend.view.choice.python == "/usr/bin/python3"


def test_an_address_that_was_typed_makes_the_buttons_usable_before_the_field_is_left(shown: Shown) -> None:
    shown.ui.serverRadioButton.click()
    shown.settle()
    assert not shown.ui.testBackendButton.enabled and "Type the address" in shown.ui.testBackendButton.toolTip
    shown.ui.serverComboBox.setEditText("gpu.example.org")
    assert shown.standin.process(5, until=lambda: shown.ui.testBackendButton.enabled)
    shown.ui.serverComboBox.setEditText("other.example.org")
    shown.ui.runButton.click()
    assert shown.workbench.backend.view.choice.url == "other.example.org"


def test_an_empty_model_is_the_built_in_one(shown: Shown) -> None:
    assert shown.panel is not None and shown.workbench.calls_of("backend.choose")[0][0].model == "built-in"
    assert shown.ui.modelLineEdit.text == ""


@pytest.mark.parametrize(
    ("button", "method", "view"),
    [
        ("testBackendButton", "backend.test", {}),
        ("installButton", "backend.install", {"can_install": True}),
        ("removeInstallationButton", "backend.remove", {"can_remove": True}),
        ("cancelInstallationButton", "backend.cancel_installation", {"progress": 0.4, "state": "busy"}),
    ],
)
def test_a_button_of_the_backend_reaches_the_workbench(
    shown: Shown, button: str, method: str, view: dict[str, Any]
) -> None:
    shown.put(backend=replace(shown.workbench.backend.view, **view))
    getattr(shown.ui, button).click()
    assert shown.workbench.calls_of(method) == [()]


def test_the_progress_of_an_installation_is_shown_only_while_it_goes_on(shown: Shown) -> None:
    assert not shown.seen("installationProgressBar")
    shown.put(backend=replace(shown.workbench.backend.view, state="busy", status="Installing torch.", progress=0.4))
    assert shown.seen("installationProgressBar") and shown.ui.installationProgressBar.value == 40
    assert shown.ui.backendStatusLabel.text == "Installing torch."


def test_what_is_being_typed_is_not_overwritten(shown: Shown) -> None:
    shown.ui.serverRadioButton.click()
    shown.ui.serverComboBox.setEditText("http://half")
    shown.put(backend=replace(shown.workbench.backend.view, hosts=("http://a:1", "http://b:2")))
    assert shown.ui.serverComboBox.count == 2


def test_only_what_belongs_to_the_kind_of_backend_is_seen(shown: Shown) -> None:
    assert shown.seen("localAdvancedFrame") and not shown.seen("serverFrame")
    shown.ui.serverRadioButton.click()
    shown.settle()
    assert shown.seen("serverFrame") and shown.seen("serverAdvancedFrame")
    assert not shown.seen("localAdvancedFrame") and not shown.seen("installButton")


def test_a_button_that_cannot_be_used_says_why(shown: Shown) -> None:
    button = shown.ui.removeInstallationButton
    assert not button.enabled and button.toolTip == "Nothing was installed."
    shown.put(backend=replace(shown.workbench.backend.view, can_remove=True))
    assert button.enabled and "free its space" in button.toolTip
    shown.put(backend=replace(shown.workbench.backend.view, can_remove=False, state="busy"))
    assert not button.enabled and "Wait" in button.toolTip


def test_every_control_has_a_tooltip(shown: Shown) -> None:
    kinds = ("QPushButton", "QRadioButton", "QCheckBox", "QComboBox", "QLineEdit", "QSpinBox", "QDoubleSpinBox")
    kinds += ("QListWidget", "QProgressBar", "qMRMLNodeComboBox", "qMRMLCheckableNodeComboBox", "ctkRangeWidget")
    controls = {name: one for name, one in vars(shown.ui).items() if one.className() in (*kinds, "ctkSliderWidget")}
    assert len(controls) > 35
    assert [name for name, one in controls.items() if not one.toolTip and not name.startswith("qt_")] == []


# -- the question


def test_a_question_is_shown_in_the_panel_and_answered_there(shown: Shown) -> None:
    from SDFSMISLib.workbench.views import Question

    assert not shown.seen("questionFrame")
    shown.put(questions=Question("consent:gpu", "Send slices to gpu?", "Send them", "Do not"))
    assert shown.seen("questionFrame") and shown.ui.questionLabel.text == "Send slices to gpu?"
    assert (shown.ui.agreeButton.text, shown.ui.declineButton.text) == ("Send them", "Do not")
    shown.ui.agreeButton.click()
    shown.ui.declineButton.click()
    assert shown.workbench.calls_of("questions.answer") == [("consent:gpu", True), ("consent:gpu", False)]
    shown.put(questions=None)
    assert not shown.seen("questionFrame")
