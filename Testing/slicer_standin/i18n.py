"""slicer.i18n: texts in the user's language, which is English here."""

from __future__ import annotations

import types


def translate(context: str, text: str, disambiguation: str | None = None, n: int = -1) -> str:
    return text


def tr(text: str, disambiguation: str | None = None, n: int = -1) -> str:
    return text


def i18n_module() -> types.ModuleType:
    module = types.ModuleType("slicer.i18n")
    module.tr, module.translate = tr, translate
    module.getContext = lambda path: path
    return module
