"""Installs the environment of the backend step by step, with progress and errors in plain words.

Also: which of PyTorch's builds pip installs on a computer, why pip failed, and whether another Python has SDFSMIS.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from SDFSMISLib.errors import Cancelled, InputError
from SDFSMISLib.wire import PROTOCOL
from SDFSMISLib.workbench.environment import Environment, EnvironmentState, clean, run_command

NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Failed to establish|name resolution|"
    r"getaddrinfo|Network is unreachable|Connection (refused|reset|aborted)|ConnectionResetError|RemoteDisconnected|"
    r"timed out"
)
MISSING = re.compile(r"No matching distribution found for ([A-Za-z0-9._-]+)")

KINDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"No space left on device|Errno 28\b|WinError 112\b|not enough space", re.IGNORECASE),
        "The disk became full while installing; free some space, and install again.",
    ),
    (
        re.compile(r"ProxyError|Proxy Authentication|Tunnel connection failed|Cannot connect to proxy"),
        "The proxy of this network did not let the download through; ask your IT department for its address, and give "
        "it as pip option: --proxy http://user:password@computer:port.",
    ),
    (
        re.compile(r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError"),
        "The certificate of the download site is not trusted, as happens where a network inspects traffic; ask your "
        "IT department for its certificate, and give it as pip option: --cert FILE.",
    ),
    (
        NETWORK,
        "The download site cannot be reached; check the network connection, and install again, or give the mirror of "
        "your institution as pip option: --index-url ADDRESS.",
    ),
    (
        re.compile(r"Permission denied|Access is denied|Errno 13\b|WinError 5\b|WinError 32\b"),
        "A file cannot be written; end the programs that use the environment, name a folder that you may write to, "
        "and install again.",
    ),
    (
        re.compile(r"DO NOT MATCH THE HASHES|IncompleteRead|Connection broken|incomplete download", re.IGNORECASE),
        "A download arrived damaged; install again.",
    ),
    (
        re.compile(r"no such option|pip (install|<command>) \[options\]|option requires|invalid .*choice"),
        "pip does not accept the pip options; correct them.",
    ),
)


def pip_failure(lines: Sequence[str]) -> str:
    """Why pip failed and what to do, in one sentence for people who have never heard of pip.

    Args:
        lines: the last lines that pip wrote.

    >>> pip_failure(["ERROR: [Errno 28] No space left on device"])
    'The disk became full while installing; free some space, and install again.'
    """
    text = "\n".join(lines)
    for pattern, explanation in KINDS:
        if pattern.search(text):
            return explanation
    missing = MISSING.search(text)
    if missing is not None:
        return (
            f"The package {missing[1]} is not there for this computer's Python; give an index that has it as "
            "pip option: --index-url ADDRESS, or name another Python."
        )
    errors = [line for line in lines if line.startswith("ERROR:")] or list(lines)
    last = errors[-1].removeprefix("ERROR:").strip() if errors else "it wrote nothing"
    return f"pip could not install the packages ({last}); the log says more, and installing again may help."


PAGE = "https://pytorch.org/get-started/locally"  # names the addresses of the other builds
GB = 10**9
PATIENCE = 10.0  # seconds; a broken driver never answers


@dataclass(frozen=True)
class TorchBuild:
    """A build of PyTorch.

    Attributes:
        advice: what the user should know about it, in sentences; "" = nothing.
        download, disk: bytes that the whole environment with this build takes, roughly.
    """

    advice: str
    download: int
    disk: int


def usual_build(cards: Sequence[str], system: str = "") -> TorchBuild:
    """The build that pip installs on a computer without options.

    Args:
        cards: names of its NVIDIA cards.
        system: as ``platform.system()`` gives it; "" = that of this computer.

    >>> usual_build(["NVIDIA A100"], "Linux")
    TorchBuild(advice='', download=4000000000, disk=9000000000)
    """
    system = system or platform.system()
    if system == "Linux":
        advice = (
            "The usual build of PyTorch for Linux holds what NVIDIA cards need, and none was found here; a smaller one "
            f"is named on {PAGE}: give its address as pip option, --extra-index-url ADDRESS."
        )
        return TorchBuild("" if cards else advice, 4 * GB, 9 * GB)
    if system == "Windows" and cards:
        advice = (
            f"The usual build of PyTorch for Windows computes on the processor. To use the {cards[0]}, take the "
            f"address of a CUDA build from {PAGE}, give it as pip option, --extra-index-url ADDRESS, and install again."
        )
        return TorchBuild(advice, GB // 2, 3 * GB)
    return TorchBuild("", GB // 2, 3 * GB)


def graphics_cards(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The names of the NVIDIA cards of this computer, as the driver gives them; empty if no driver answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    end = time.monotonic() + PATIENCE
    try:
        words = [program, "--query-gpu=name", "--format=csv,noheader"]
        done = run_command(words, variables, cancel=lambda: time.monotonic() > end)
    except (InputError, Cancelled):
        return ()
    return tuple(line.strip() for line in done.lines if line.strip()) if done.status == 0 else ()


KEPT_LINES = 400
RAW_PROGRESS = (24, 1)  # the first pip that writes progress in bytes as plain lines
PIP_VARIABLES = {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0"}
PASSING = ("memory", "disk here", "disk for temp")  # what is short during the check may not be later
NEEDED = ("torch", "diffusers", "transformers", "fastapi", "uvicorn")
VERSIONS = f"""
import importlib.util, json, sys
missing = [name for name in {NEEDED!r} if importlib.util.find_spec(name) is None]
import SDFSMISLib
from SDFSMISLib.wire import PROTOCOL
print(json.dumps([SDFSMISLib.__version__, PROTOCOL, missing]))
"""


@dataclass(frozen=True)
class Progress:
    """Progress of an installation.

    Attributes:
        share: done so far, 0 to 1; it never decreases.
        step, steps: number of the current step, from 1, and of all steps.
        text: what is being done, in words.
    """

    share: float
    step: int
    steps: int
    text: str


@dataclass(frozen=True)
class ExistingPython:
    """A Python that has SDFSMIS already.

    Attributes:
        python: its path.
        version: of SDFSMIS.
        variables: environment variables with which it starts.
    """

    python: str
    version: str
    variables: Mapping[str, str]


class Installation:
    """Brings an environment up to date with this version, in any thread; it can be run again after a failure."""

    def __init__(
        self, environment: Environment, python: str, build: TorchBuild, pip_options: Sequence[str] = ()
    ) -> None:
        """
        Args:
            environment: to make, or to bring up to date.
            python: path of the Python that it is made of.
            build: of PyTorch, for sizes and advice.
            pip_options: options of every installing call of pip: a mirror, a proxy, a certificate.
        """
        self._environment, self._python, self._build = environment, python, build
        self._options = tuple(pip_options)
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._notes: list[str] = []

    @property
    def log(self) -> str:
        """The last lines that the programs wrote."""
        return "\n".join(list(self._lines))

    def run(self, on_progress: Callable[[Progress], None], cancel: Callable[[], bool], again: bool = False) -> str:
        """Install everything, or only what has changed.

        Args:
            on_progress: called in this thread, several times a second at most.
            cancel: called ten times a second; True ends the running programs. The environment is incomplete then and is
                made again the next time; downloads stay in pip's cache.
            again: install again although nothing is missing: other pip options may give other builds.

        Returns:
            what was done and what the user should know about it, in sentences.

        Raises:
            InputError: if it failed; tells what to do.
            Cancelled: if ``cancel`` returned True.
        """
        self._notes = []
        environment, state = self._environment, self._environment.state
        if state is EnvironmentState.READY and not again:
            return f"SDFSMIS is installed in {environment.folder}."
        whole = again or state is not EnvironmentState.OUTDATED
        packages = whole or environment.needs_packages
        steps = _Steps(on_progress, cancel, self._lines, self._build.download, (whole, packages))
        if packages:
            steps.begin("Checking the disk")
            self._check_disk()
        name = environment.variables_name
        if whole:
            steps.begin("Making the environment")
            name = environment.make(self._python, cancel, steps.line)
        elif packages:
            environment.unfinish()
        variables = dict(environment.environments[name]) | PIP_VARIABLES
        if packages:
            self._install_packages(variables, steps)
        steps.begin("Copying SDFSMIS")
        environment.copy_library()
        steps.begin("Checking whether it works")
        self._check(variables, steps)
        environment.finish(name)
        return " ".join([f"SDFSMIS is installed in {environment.folder}.", *self._notes])

    def _check_disk(self) -> None:
        """Raise :class:`InputError` if the disk is too small."""
        folder = self._environment.folder
        needs = {folder: self._build.disk}
        temporary = Path(tempfile.gettempdir())
        if _existing_folder(temporary).stat().st_dev != _existing_folder(folder).stat().st_dev:
            needs[temporary] = self._build.download
        for place, need in needs.items():
            free = shutil.disk_usage(_existing_folder(place)).free
            if free < need:
                raise InputError(
                    f"Installing needs about {need / 1e9:.1f} GB on the disk of {place}, where {free / 1e9:.1f} GB are "
                    "free; free some space there, or name another folder."
                )

    def _install_packages(self, variables: Mapping[str, str], steps: _Steps) -> None:
        requirements = self._environment.requirements
        lines = requirements.read_text(encoding="utf-8").splitlines()
        torch = next(line for line in lines if re.match(r"torch\b", line))
        steps.begin("Installing PyTorch")  # by itself, so that its share of the time is shown
        self._pip([torch], variables, steps)
        if self._build.advice and not self._options:
            self._notes.append(self._build.advice)
        steps.begin("Installing the other packages")
        self._pip(["-r", str(requirements)], variables, steps)

    def _pip(self, words: Sequence[str], variables: Mapping[str, str], steps: _Steps) -> None:
        """Install packages; raise :class:`InputError` if pip fails."""
        pip = [str(self._environment.python), "-m", "pip"]
        output = "\n".join(run_command([*pip, "--version"], variables, cancel=steps.cancel).lines)
        version = re.search(r"pip (\d+)\.(\d+)", output)
        raw = version is not None and (int(version[1]), int(version[2])) >= RAW_PROGRESS
        bar = ["--progress-bar", "raw" if raw else "off"]
        command = [*pip, "install", "--only-binary", ":all:", *bar, *words, *self._options]
        done = run_command(command, variables, cancel=steps.cancel, on_line=steps.line)
        if done.status != 0:
            raise InputError(pip_failure(done.lines))

    def _check(self, variables: Mapping[str, str], steps: _Steps) -> None:
        """Run ``sdfsmis doctor`` in the environment."""
        environment = self._environment
        command = [str(environment.python), "-m", "SDFSMISLib.cli", "doctor"]
        folder = environment.folder
        done = run_command(command, variables, folder=folder, cancel=steps.cancel, on_line=steps.line)
        wrong = [line[1:].strip() for line in done.lines if line.startswith("!")]
        wrong = [line for line in wrong if not line.startswith(PASSING)]
        verdict = done.lines[-1] if done.lines else ""
        if wrong or not verdict.startswith(("All good.", "To do:")):
            found = " ".join((wrong[0] if wrong else verdict or f"exit status {done.status}").split())
            raise InputError(
                f"The packages are installed, but segmenting with them does not work ({found}); remove the environment "
                "and install again, or name another Python that has SDFSMIS."
            )
        if verdict != "All good.":
            self._notes.append(verdict)


class _Steps:
    """The steps of an installation, and their progress, read from the output of pip."""

    WEIGHTS = {
        "Checking the disk": 0.01,
        "Making the environment": 0.06,
        "Installing PyTorch": 0.45,
        "Installing the other packages": 0.35,
        "Copying SDFSMIS": 0.01,
        "Checking whether it works": 0.12,
    }

    def __init__(
        self,
        on_progress: Callable[[Progress], None],
        cancel: Callable[[], bool],
        lines: deque[str],
        download: int,
        more: tuple[bool, bool],
    ) -> None:
        """``more``: whether the environment is made, and packages are installed; the library is always copied."""
        whole, packages = more
        titles = list(self.WEIGHTS)
        self._titles = titles if whole else [titles[0], *titles[2:]] if packages else titles[-2:]
        self._all = sum(self.WEIGHTS[title] for title in self._titles)
        self._on_progress, self.cancel, self._lines = on_progress, cancel, lines
        self._download = download
        self._at, self._file, self._received, self._share = -1, "", 0, 0.0

    def begin(self, title: str) -> None:
        """Begin the next step."""
        if self.cancel():
            raise Cancelled("Installing was cancelled.")
        self._at, self._received, self._file = self._titles.index(title), 0, ""
        self._report(title, 0.0)

    def line(self, line: str) -> None:
        """Take a line that a program wrote."""
        title = self._titles[self._at]
        progress = re.fullmatch(r"Progress (\d+) of (\d+)", line.strip())
        if progress is not None:
            done, total = int(progress[1]), int(progress[2])
            received = self._received + done
            if done >= total:
                self._received = received
            amount = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
            self._report(f"{title}: downloading {self._file} ({amount})", received / self._download)
            return
        self._lines.append(line)
        file = re.match(r"\s*(Downloading|Using cached) (\S+?)(?:\.whl\S*)?( \(.+\))?$", line)
        if file is not None:
            self._file = "-".join(file[2].rpartition("/")[2].split("-")[:2])
            self._report(f"{title}: downloading {self._file}{file[3] or ''}", self._received / self._download)
        elif line.strip():
            self._report(f"{title}: {line.strip():.120}", self._received / self._download)

    def _report(self, text: str, part: float) -> None:
        """Report that a ``part`` of the current step is done, 0 to 1."""
        before = sum(self.WEIGHTS[title] for title in self._titles[: self._at])
        share = (before + self.WEIGHTS[self._titles[self._at]] * min(part, 1.0)) / self._all
        self._share = max(self._share, share)
        self._on_progress(Progress(self._share, self._at + 1, len(self._titles), text))


def inspect_python(
    python: str, environments: Mapping[str, Mapping[str, str]], cancel: Callable[[], bool]
) -> ExistingPython:
    """Check whether another Python can run the backend; it takes a second.

    Args:
        python: its path.
        environments: environment variables by name with which it may start; the first that work are used.
        cancel: called while it runs; True stops it.

    Raises:
        InputError: if it does not start, lacks packages, or has a version that does not fit.
        Cancelled: if ``cancel`` returned True.
    """
    output: tuple[str, ...] = ()
    for given in environments.values():
        variables = clean(given)
        done = run_command([python, "-c", VERSIONS], variables, cancel=cancel)
        output = output or done.lines
        for line in reversed(done.lines) if done.status == 0 else ():
            try:
                version, protocol, missing = json.loads(line)
            except ValueError:
                continue
            return _check_version(ExistingPython(python, version, variables), protocol, missing)
    last = output[-1].strip() if output else "it wrote nothing"
    raise InputError(f"{python} cannot run SDFSMIS ({last}); install SDFSMIS in it, with pip install sdfsmis[serve].")


def _check_version(existing: ExistingPython, protocol: int, missing: Sequence[str]) -> ExistingPython:
    """The Python itself, if this program can use it."""
    if protocol != PROTOCOL:
        older = protocol < PROTOCOL
        raise InputError(
            f"{existing.python} has SDFSMIS {existing.version}, which speaks protocol {protocol}, and this panel "
            f"speaks protocol {PROTOCOL}; update {'SDFSMIS in that Python' if older else 'this panel'}."
        )
    if missing:
        raise InputError(
            f"{existing.python} has SDFSMIS {existing.version} without {', '.join(missing)}; install the rest, with "
            "pip install sdfsmis[serve]."
        )
    return existing


def _existing_folder(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next((place for place in (path, *path.parents) if place.exists()), path)
