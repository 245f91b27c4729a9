"""Measuring: cases with labels, protocols, metrics, baselines, and the tables and pictures made of them."""

from __future__ import annotations

from SDFSMISLib.evaluation.baselines import copy_support, segmenter_method
from SDFSMISLib.evaluation.cases import Case, Manifest, read_manifest
from SDFSMISLib.evaluation.contact_sheet import contact_sheet
from SDFSMISLib.evaluation.evaluate import evaluate
from SDFSMISLib.evaluation.protocols import PROTOCOLS, Task
from SDFSMISLib.evaluation.results import Row, read_results, summarise, write_summary
from SDFSMISLib.evaluation.tables import markdown_table, rich_table

__all__ = [
    "PROTOCOLS",
    "Case",
    "Manifest",
    "Row",
    "Task",
    "contact_sheet",
    "copy_support",
    "evaluate",
    "markdown_table",
    "read_manifest",
    "read_results",
    "rich_table",
    "segmenter_method",
    "summarise",
    "write_summary",
]
