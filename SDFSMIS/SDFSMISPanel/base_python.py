"""Base Python: the Python that an environment is made of, Slicer's own for one, and what makes that one special."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from SDFSMISLib.errors import InputError
from SDFSMISPanel.command import run_command

__all__ = ["BasePython", "ask_python"]

OLDEST, NEWEST = (3, 10), (3, 12)
QUESTION = """
import json, os, sys
library = os.path.dirname(os.__file__)
inside = [p for p in sys.path if os.path.isdir(p) and p.startswith(sys.base_prefix) and "site-packages" not in p]
executable = getattr(sys, "_base_executable", None) or sys.executable
print(json.dumps([sys.version_info[:2], sys.base_prefix, executable, library, inside]))
"""


@dataclass(frozen=True)
class BasePython:
    """A Python, as it describes itself.

    Attributes:
        command: path to start it by.
        version: major and minor.
        prefix: folder of its installation.
        executable: the program itself, where ``command`` only starts it.
        standard_library: folder of it.
        paths: folders that it finds modules of the standard library in.
        variables: environment variables that it starts with.
    """

    command: str
    version: tuple[int, int]
    prefix: Path
    executable: Path
    standard_library: Path
    paths: tuple[str, ...]
    variables: Mapping[str, str]

    def complete(self, folder: Path, site_packages: Path) -> None:
        """Make an environment in ``folder`` find the standard library.

        Slicer's program is not where the standard library would be looked for from, and is told by PYTHONHOME where
        it is; the program of an environment has to find it by itself.

        Raises:
            OSError: where files cannot be written.
        """
        configuration = folder / "pyvenv.cfg"
        lines = configuration.read_text(encoding="utf-8").splitlines()
        home = Path(next(line for line in lines if line.startswith("home")).partition("=")[2].strip())
        inside = self.standard_library.relative_to(self.prefix)
        above = (place / inside for place in (home, *home.parents))
        found = next((place for place in above if (place / "os.py").is_file()), None)
        if found is None or not found.samefile(self.standard_library):  # none, or that of another Python
            home = self.prefix if os.name == "nt" else self.prefix / "bin"
            lines = [f"home = {home}" if line.startswith("home") else line for line in lines]
            configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        extra = list(self.paths)  # those that are known already are not taken twice
        if os.name == "nt":
            extra.append(f"import os; os.add_dll_directory({str(self.executable.parent)!r})")
            self._copy_program(folder / "Scripts")
        site_packages.mkdir(parents=True, exist_ok=True)
        (site_packages / "sdfsmis_standard_library.pth").write_text("\n".join(extra) + "\n", encoding="utf-8")

    def _copy_program(self, scripts: Path) -> None:
        """On Windows ``venv`` needs a starter, which Slicer's Python lacks; the program itself takes its place."""
        if (scripts / "python.exe").exists():
            return
        scripts.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self.executable, scripts / "python.exe")
        for pattern in ("python3*.dll", "vcruntime*.dll"):
            for library in self.executable.parent.glob(pattern):
                shutil.copy2(library, scripts / library.name)


def ask_python(python: str, environments: Mapping[str, Mapping[str, str]], cancel: Callable[[], bool]) -> BasePython:
    """Start a Python and let it describe itself.

    Args:
        python: its path.
        environments: name -> environment variables, tried in this order.
        cancel: asked while it runs.

    Raises:
        InputError: where it cannot be started, or is too old or too new.
        Cancelled: where ``cancel`` said so.
    """
    said: tuple[str, ...] = ()
    for variables in environments.values():
        done = run_command([python, "-c", QUESTION], variables, cancel=cancel)
        said = done.lines
        for line in reversed(said) if done.status == 0 else ():
            try:
                version, prefix, executable, library, paths = json.loads(line)
            except ValueError:
                continue
            places = Path(prefix), Path(executable), Path(library)
            return _accepted(BasePython(python, tuple(version), *places, tuple(paths), variables))
    last = f" ({said[-1].strip()})" if said else ""
    raise InputError(f"{python} is no Python that starts{last}; name the program of a Python 3.10, 3.11 or 3.12.")


def _accepted(base: BasePython) -> BasePython:
    if not OLDEST <= base.version <= NEWEST:
        version, what = ".".join(map(str, base.version)), "old" if base.version < OLDEST else "new"
        raise InputError(f"{base.command} is Python {version}, which is too {what}; name a Python 3.10, 3.11 or 3.12.")
    return base
