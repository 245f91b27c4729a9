"""Settings: what a front end remembers from one start to the next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from SDFSMISLib.workbench.views import BackendChoice, BackendKind

__all__ = ["HISTORY", "Settings"]

PREFIX = "SDFSMIS/"
HISTORY = 10  # addresses of servers that are kept


class Settings:
    """Values in a store, as JSON under names that begin with ``SDFSMIS/``. No password is ever stored.

    Args:
        store: a QSettings, or anything with its methods ``value(name, default)`` and ``setValue(name, text)``.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def choice(self) -> BackendChoice:
        """The backend that was chosen last, without its token."""
        kept = self._read("backend", {})
        texts = set(asdict(BackendChoice())) - {"kind", "token"}
        known = {name: value for name, value in kept.items() if name in texts and isinstance(value, str) and value}
        server = kept.get("kind") == BackendKind.SERVER.value
        return BackendChoice(kind=BackendKind.SERVER if server else BackendKind.LOCAL, **known)

    def keep_choice(self, choice: BackendChoice) -> None:
        """Store the chosen backend, without its token, and without texts that may contain a password."""
        kept = {**asdict(choice), "kind": choice.kind.value}
        del kept["token"]
        for name in ("url", "pip_options"):
            if "@" in kept[name]:  # https://user:password@computer, and user:password@proxy as pip takes it
                kept[name] = ""
        self._write("backend", kept)

    def hosts(self) -> tuple[str, ...]:
        """Addresses of servers that worked, the last one first."""
        return self._texts("hosts")

    def keep_host(self, url: str) -> None:
        """Store the address of a server that worked; the last ten are kept."""
        others = [known for known in self.hosts() if known != url]
        self._write("hosts", [url, *others][:HISTORY])

    def agreed_hosts(self) -> tuple[str, ...]:
        """Hosts to which the user has agreed to send slices."""
        return self._texts("agreed")

    def keep_agreed(self, hosts: Sequence[str]) -> None:
        """Store the hosts to which the user has agreed to send slices."""
        self._write("agreed", list(hosts))

    def folder(self) -> str:
        """Where a support set was saved or loaded last; "" = nowhere yet."""
        return str(self._read("folder", ""))

    def keep_folder(self, folder: str) -> None:
        """Store where a support set was saved or loaded last."""
        self._write("folder", folder)

    def _texts(self, name: str) -> tuple[str, ...]:
        return tuple(text for text in self._read(name, []) if isinstance(text, str))

    def _read(self, name: str, default: Any) -> Any:
        """The stored value; the default if there is none, or if its type is another one."""
        text = self._store.value(PREFIX + name, "")
        try:
            found = json.loads(text) if text else default
        except (TypeError, ValueError):
            return default
        return found if isinstance(found, type(default)) else default

    def _write(self, name: str, value: Any) -> None:
        # As JSON, since an INI file turns a list with one text into a text, and True into a word.
        self._store.setValue(PREFIX + name, json.dumps(value))
