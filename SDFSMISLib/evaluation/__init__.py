"""Measuring: cases with labels, protocols, metrics, baselines, and the tables and pictures made of them."""

from __future__ import annotations

from SDFSMISLib.cohort.cases import Case, Manifest, read_manifest
from SDFSMISLib.evaluation.baselines import BASELINES, SegmenterMethod, copy_support
from SDFSMISLib.evaluation.contact_sheet import contact_sheet
from SDFSMISLib.evaluation.diagnostics import Diagnostics, diagnose
from SDFSMISLib.evaluation.evaluate import evaluate, held_out_dice
from SDFSMISLib.evaluation.interactive import PAINTINGS, Curve, curves, curves_table, evaluate_interactive
from SDFSMISLib.evaluation.metrics import METRICS
from SDFSMISLib.evaluation.protocols import PROTOCOLS, Setting, Task
from SDFSMISLib.evaluation.report import write_report
from SDFSMISLib.evaluation.results import Row, read_results, summarise
from SDFSMISLib.evaluation.tables import diagnostics_table, markdown_table, measures_table, rich_table

__all__ = [
    "BASELINES",
    "METRICS",
    "PAINTINGS",
    "PROTOCOLS",
    "Case",
    "Curve",
    "Diagnostics",
    "Manifest",
    "Row",
    "SegmenterMethod",
    "Setting",
    "Task",
    "contact_sheet",
    "copy_support",
    "curves",
    "curves_table",
    "diagnose",
    "diagnostics_table",
    "evaluate",
    "evaluate_interactive",
    "held_out_dice",
    "markdown_table",
    "measures_table",
    "read_manifest",
    "read_results",
    "rich_table",
    "summarise",
    "write_report",
]
