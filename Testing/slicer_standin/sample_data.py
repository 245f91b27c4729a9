"""The module SampleData: what modules register as their sample data; nothing is downloaded."""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

import slicer

FIELDS = (
    "category sampleName uris fileNames nodeNames customDownloader thumbnailFileName loadFileTypes loadFiles "
    "loadFileProperties checksums"
).split()


@dataclass(frozen=True)
class SampleDataSource:
    """One entry, as it was registered."""

    values: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name not in FIELDS:
            raise AttributeError(name)
        return self.values.get(name)


class SampleDataLogic:
    @staticmethod
    def registerCustomSampleDataCategory(category: str, title: str | None = None) -> None:
        sources().setdefault(category, [])

    @staticmethod
    def registerCustomSampleDataSource(*positional: Any, **named: Any) -> None:
        """Positional values come in the order of ``FIELDS``; lists of one source may be given as the value alone."""
        unknown = [name for name in named if name not in FIELDS]
        if unknown:
            raise TypeError(f"registerCustomSampleDataSource has no argument {', '.join(unknown)}")
        values = dict(zip(FIELDS, positional, strict=False)) | named
        for name in ("uris", "fileNames", "nodeNames", "checksums"):
            if isinstance(values.get(name), str):
                values[name] = [values[name]]
        _check(values)
        sources().setdefault(values["category"], []).append(SampleDataSource(values))


def sources() -> dict[str, list[SampleDataSource]]:
    if not hasattr(slicer.modules, "sampleDataSources"):
        slicer.modules.sampleDataSources = {}
    return slicer.modules.sampleDataSources


def sample_data_module() -> types.ModuleType:
    module = types.ModuleType("SampleData")
    module.SampleDataLogic, module.SampleDataSource = SampleDataLogic, SampleDataSource
    return module


def _check(values: dict[str, Any]) -> None:
    counts = {name: len(values[name]) for name in ("uris", "fileNames", "nodeNames", "checksums") if values.get(name)}
    if len(set(counts.values())) > 1:
        raise ValueError(f"A sample needs as many of each: {counts}")
