"""A folder with a small library, its requirements and an index of wheels, of which the panel makes an environment."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from SDFSMISLib.workbench.environment import Environment, run_command
from SDFSMISLib.workbench.installation import Installation, Progress, TorchBuild

PYTHON = f'"{sys.executable}"'


def never() -> bool:
    return False


def quiet(what: object) -> None:
    pass


@dataclass
class Place:
    """A folder with a small library, requirements, wheels, and the environment that is made of them."""

    folder: Path
    build: TorchBuild = TorchBuild("It fits.", 10**6, 10**6)

    @property
    def variables(self) -> dict[str, str]:
        """Those of this process, with the wheels as the usual index, and nothing of this computer's pip settings."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        index = (self.folder / "index").as_uri()
        return own | {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "PIP_RETRIES": "0"}

    def environment(self, **others: dict[str, str]) -> Environment:
        library, requirements = self.folder / "SDFSMISLib", self.folder / "requirements.txt"
        return Environment(self.folder / "environment", library, requirements, others or {"startup": self.variables})

    def install(self, *options: str, cancel: Callable[[], bool] = never) -> tuple[str, list[Progress], Installation]:
        seen: list[Progress] = []
        installation = Installation(self.environment(), sys.executable, self.build, options)
        return installation.run(seen.append, cancel), seen, installation

    def require(self, text: str) -> None:
        (self.folder / "requirements.txt").write_text("# a comment\n" + text, encoding="utf-8")

    def version_of(self, name: str) -> str:
        code = f"import {name}; print({name}.__version__)"
        python = str(self.environment().python)
        return run_command([python, "-c", code], self.variables, folder=self.folder / "index").lines[-1]


def write_wheel(index: Path, name: str, version: str) -> None:
    """A package of one file, in an index of files."""
    place = index / name
    place.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    wheel = place / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/__init__.py", f"__version__ = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    links = "".join(f'<a href="{one.name}">{one.name}</a>' for one in sorted(place.glob("*.whl")))
    (place / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>", encoding="utf-8")


def write_library(folder: Path, said: str = "All good.", version: str = "1.0") -> None:
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "__pycache__").mkdir(exist_ok=True)
    files = {
        "__init__.py": f"__version__ = {version!r}\n",
        "cli.py": f"print({said!r})\n",
        "weights/model.safetensors": "weights",
        "weights/config.json": "{}",
        "notes.txt": "not needed",
        "__pycache__/left.py": "not needed",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
