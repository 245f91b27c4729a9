"""The way to the backend: what is asked before it is taken, what is installed, and what is said of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("slicer")
pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
pytest.importorskip("fastapi")

from slicer_standin import install

install()

from panel_examples import NoLocalBackend, PaintedScene, kept_settings  # noqa: E402
from SDFSMISLib.errors import Cancelled, InputError  # noqa: E402
from SDFSMISLib.workbench import Workbench  # noqa: E402
from SDFSMISLib.workbench.backend_choice import ChosenBackend  # noqa: E402
from SDFSMISLib.workbench.questions import Questions  # noqa: E402
from SDFSMISLib.workbench.settings import Settings  # noqa: E402
from SDFSMISLib.workbench.views import BackendChoice, BackendKind, Question, RunRequest  # noqa: E402
from serving import Backend, running  # noqa: E402

HERE = BackendChoice()
STRANGER = BackendChoice(BackendKind.SERVER, "http://stranger.example:7861")


class Installing(NoLocalBackend):
    """This computer, where installing lasts as long as the test wants."""

    def __init__(self) -> None:
        self.ready, self.go_on, self.options = False, threading.Event(), list[Sequence[str]]()

    def is_ready(self, choice: BackendChoice) -> bool:
        return self.ready

    def install(self, options: Sequence[str], again: bool, report: Callable[..., None], cancel: Any) -> str:
        self.options.append(options)
        report(0.5, "Step 1 of 2.")
        while not self.go_on.wait(0.005):
            if cancel():
                raise Cancelled("Installing was cancelled.")
        self.ready = True
        return "It is installed."


def chosen(local: NoLocalBackend, settings: Settings | None = None) -> ChosenBackend:
    return ChosenBackend(settings or kept_settings(), local, Questions())


def drive(access: ChosenBackend, is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end, access.view
        access.step()
        time.sleep(0.005)


def agree(access: ChosenBackend, agreed: bool = True) -> None:
    question = asked(access)
    assert question is not None
    access._questions.answer(question.key, agreed)


def asked(access: ChosenBackend) -> Question | None:
    return access._questions.view


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with running() as one:
        yield one


# -- consent -----------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_to_another_computer_before_the_user_agrees() -> None:
    kept, begun = kept_settings(), []
    workbench = Workbench(kept, NoLocalBackend())
    access = workbench.backend
    workbench.backend.choose(BackendChoice(BackendKind.SERVER, "http://hospital.example:7861"))
    access.before_run(lambda: begun.append("run"))
    question = workbench.questions.view
    assert question is not None and "hospital.example:7861" in question.text and "grey values" in question.text
    workbench.questions.answer(question.key, False)
    assert not begun and workbench.questions.view is None
    access.before_run(lambda: begun.append("run"))
    workbench.questions.answer(question.key, True)
    assert begun == ["run"] and kept.agreed_hosts() == ("hospital.example:7861",)
    access.before_run(lambda: begun.append("again"))
    assert begun == ["run", "again"] and workbench.questions.view is None


def test_another_host_is_asked_about_again() -> None:
    access = chosen(NoLocalBackend(), kept_settings(["hospital.example:7861"]))
    access.choose(BackendChoice(BackendKind.SERVER, "http://other.example:7861"))
    access.before_run(lambda: pytest.fail("it was sent"))
    assert asked(access) is not None and "other.example" in asked(access).text


def test_a_question_about_one_host_is_no_consent_to_another() -> None:
    access = chosen(NoLocalBackend())
    access.choose(BackendChoice(BackendKind.SERVER, "http://hospital.example:7861"))
    access.before_run(lambda: pytest.fail("it was sent"))
    access.choose(STRANGER)
    assert asked(access) is None


def test_what_waits_for_an_installation_does_not_go_to_a_server_that_was_chosen_meanwhile() -> None:
    computer, kept = Installing(), kept_settings()
    access = chosen(computer, kept)
    access.before_run(lambda: pytest.fail("it was sent"))
    agree(access)
    access.choose(STRANGER)
    computer.go_on.set()
    drive(access, lambda: computer.ready and access.view.state != "busy")
    assert kept.agreed_hosts() == ()


def test_an_answer_after_the_scene_was_closed_starts_nothing(backend: Backend) -> None:
    panel = PaintedScene("http://hospital.example:7861")
    panel.start()
    question = panel.workbench.questions.view
    assert question is not None
    panel.workbench.close_scene()
    panel.workbench.questions.answer(question.key, True)
    assert panel.workbench.questions.view is None and not panel.workbench.run.view.running


# -- installing --------------------------------------------------------------------------------------------------------


def test_on_this_computer_nothing_is_installed_before_the_user_agrees() -> None:
    access = chosen(NoLocalBackend())
    access.test()
    assert asked(access) is not None and "0.5 to 4 GB" in asked(access).text
    agree(access, False)
    assert asked(access) is None


def test_what_was_wanted_goes_on_when_it_is_installed() -> None:
    computer, begun = Installing(), []
    access = chosen(computer)
    access.before_run(lambda: begun.append("run"))
    agree(access)
    drive(access, lambda: access.view.progress == 0.5)
    assert access.view.status == "Step 1 of 2." and access.view.state == "busy" and not access.view.can_install
    computer.go_on.set()
    drive(access, lambda: bool(begun))
    assert access.view.progress is None


def test_while_it_is_installed_nothing_else_is_installed_or_begun() -> None:
    computer = Installing()
    access = chosen(computer)
    access.install()
    agree(access)
    access.before_run(lambda: pytest.fail("it was begun"))
    access.install()
    assert asked(access) is None and "wait until" in access.problem()
    computer.go_on.set()
    drive(access, lambda: access.view.progress is None)
    assert len(computer.options) == 1 and access.view.status == "It is installed."


def test_a_cancelled_installation_is_no_failure() -> None:
    access = chosen(Installing())
    access.before_run(lambda: pytest.fail("it was begun"))
    agree(access)
    access.cancel_installation()
    drive(access, lambda: access.view.progress is None)
    assert access.view.state == "unknown" and "cancelled" in access.view.status


def test_pip_options_are_words_as_a_shell_takes_them() -> None:
    computer = Installing()
    access = chosen(computer)
    access.choose(BackendChoice(pip_options="--cert '/etc/our certificate.pem'"))
    access.install()
    agree(access)
    drive(access, lambda: bool(computer.options))
    assert computer.options == [["--cert", "/etc/our certificate.pem"]]
    computer.go_on.set()


def test_an_open_quote_in_the_pip_options_is_told() -> None:
    access = chosen(Installing())
    access.choose(BackendChoice(pip_options="--cert 'file"))
    access.install()
    agree(access)
    assert access.view.state == "bad" and "quotes" in access.view.status and access.view.progress is None


def test_a_removal_that_fails_says_why() -> None:
    class Stubborn(Installing):
        def exists(self) -> bool:
            return True

        def remove(self) -> str:
            raise InputError("A program uses it.")

    access = chosen(Stubborn())
    access.remove()
    agree(access)
    drive(access, lambda: access.view.state == "bad")
    assert access.view.status == "A program uses it."


# -- what is said ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [
        BackendChoice(BackendKind.SERVER),
        BackendChoice(BackendKind.SERVER, "http://localhost:7861", token="ö"),
        BackendChoice(BackendKind.SERVER, "https://localhost:7861", certificate="/nowhere.pem"),
    ],
)
def test_a_server_that_cannot_be_one_keeps_the_run_from_beginning_in_words(choice: BackendChoice) -> None:
    panel = PaintedScene("")
    panel.workbench.backend.choose(choice)
    panel.workbench.step()
    assert panel.workbench.run.why_not(RunRequest())
    panel.start()
    panel.workbench.backend.test()
    assert not panel.workbench.run.view.running and panel.workbench.backend.view.state == "bad"
    panel.workbench.close()


def test_the_status_follows_what_runs_found_out(backend: Backend) -> None:
    kept = kept_settings()
    panel = PaintedScene(backend.url, kept=kept)
    assert "not been tried" in panel.workbench.backend.view.status
    panel.start()
    assert panel.workbench.backend.view.state == "busy"
    panel.drive(lambda: not panel.workbench.run.view.running)
    assert panel.workbench.backend.view.state == "good" and kept.hosts() == (backend.url,)
    panel.workbench.backend.choose(BackendChoice(BackendKind.SERVER, "http://127.0.0.1:9"))
    assert panel.workbench.backend.view.state == "unknown"
    panel.workbench.close()


def test_while_a_run_goes_on_its_backend_is_left_alone() -> None:
    access = chosen(Installing())
    access.run_begins()
    access.install()
    access.remove()
    access.test()
    assert asked(access) is None and not access.view.can_install and not access.view.can_remove
    access.run_ended(None, None)
    access.install()
    assert asked(access) is not None
