"""Figures that papers report, for the tables: mean Dice in %, one way, one shot.

All are their authors' own, on different trainings and often copied from paper to paper; who tested which scans, and how
scans were averaged, is seldom said. Each row names where it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PUBLISHED", "Published", "published_for"]

FOB = "README of FoB (CVPR 2026)"
NOTES = "notes of third parties on SD-FSMIS (arXiv 2604.03134), not the paper itself"
RE_SAM2 = "README of RE-SAM2"
PSP = "README of PSP (arXiv 2606.28799)"
CROSS = "FAMNet (AAAI 2025), table 1, or the READMEs of PSP and FoB"
FAMNET = "FAMNet (AAAI 2025), table 1"


@dataclass(frozen=True)
class Published:
    """One method on one data set. ``trained_on`` is the same data set where nothing else is said; ``organs`` the Dice
    of each where it is known; ``remark`` what sets the row apart."""

    method: str
    data: str
    setting: int
    mean: float
    source: str
    trained_on: str = ""
    organs: Mapping[str, float] = field(default_factory=dict)
    remark: str = ""


def _both_settings(
    method: str, mri: tuple[float, ...], ct: tuple[float, ...], source: str = FOB, remark: str = ""
) -> tuple[Published, ...]:
    """Rows of Abd-MRI and Abd-CT: Settings I and, where it is there, II."""
    return tuple(
        Published(method, data, setting, value, source, remark=remark)
        for data, values in (("chaos_t2", mri), ("sabs", ct))
        for setting, value in enumerate(values, 1)
    )


def _abdomen(values: tuple[float, ...]) -> dict[str, float]:
    """Liver, right kidney, left kidney, spleen."""
    return dict(zip(("liver", "right kidney", "left kidney", "spleen"), values, strict=True))


def _fob(data: str, setting: int, mean: float, *organs: float) -> Published:
    return Published("FoB + SAM ViT-H (CVPR 2026)", data, setting, mean, FOB, organs=_abdomen(organs))


def _cross(
    method: str,
    to_mri: tuple[float, ...],
    to_ct: tuple[float, ...],
    source: str = CROSS,
) -> tuple[Published, ...]:
    """Mean, then liver, left kidney, right kidney, spleen where they are known: CT to MRI, MRI to CT."""
    rows = []
    for trained_on, data, (mean, *organs) in (("sabs", "chaos_t2", to_mri), ("chaos_t2", "sabs", to_ct)):
        in_order = tuple(organs[place] for place in (0, 2, 1, 3)) if organs else ()
        by_name = _abdomen(in_order) if organs else {}
        rows.append(Published(method, data, 1, mean, source, trained_on, by_name))
    return tuple(rows)


FINE_TUNED = "fine-tunes on the support scan's labels, fold by fold"

PUBLISHED: tuple[Published, ...] = (
    *_both_settings("SSL-ALPNet (ECCV 2020)", (78.84, 73.02), (73.35, 63.02)),
    *_both_settings("RPT (MICCAI 2023)", (82.44, 79.04), (77.83, 71.69)),
    *_both_settings("GMRD (TMI 2024)", (82.90, 79.70), (78.52, 77.32)),
    *_both_settings("PGRNet (TMI 2024)", (83.47,), (77.17,)),
    *_both_settings("DIFD (TMI 2025)", (84.12,), (80.19,), NOTES),
    *_both_settings("ProtoSAM", (81.56, 77.83), (75.50, 73.45)),
    *_both_settings("AM-SAM", (81.40, 75.56), (86.19, 84.04), remark="fine-tunes SAM"),
    Published(
        "DiffewS (NeurIPS 2024)", "sabs", 1, 78.78, NOTES, remark="derived: SD-FSMIS minus the gain that is told of it"
    ),
    *_both_settings("SD-FSMIS (CVPR 2026)", (83.16,), (83.66,), NOTES),
    *_both_settings("FoB + S-2D (CVPR 2026)", (82.49, 78.29), (80.70, 77.48)),
    _fob("chaos_t2", 1, 84.46, 85.61, 88.18, 84.76, 79.31),
    _fob("chaos_t2", 2, 80.46, 82.43, 87.91, 78.21, 73.30),
    _fob("sabs", 1, 86.21, 86.51, 86.51, 87.29, 84.54),
    _fob("sabs", 2, 84.80, 82.29, 85.91, 88.55, 82.43),
    *_both_settings("RE-SAM2", (85.31,), (86.12,), RE_SAM2, FINE_TUNED),
    *_both_settings("SAM2 without fine-tuning", (68.57,), (68.60,), RE_SAM2),
    Published("SSL-ALPNet (TMI 2022)", "cmr", 1, 77.94, RE_SAM2),
    Published("RPT (MICCAI 2023)", "cmr", 1, 79.19, RE_SAM2),
    Published("GMRD (TMI 2024)", "cmr", 1, 79.11, RE_SAM2),
    Published("ADNet (MedIA 2022)", "cmr", 1, 75.76, RE_SAM2),
    Published("Q-Net", "cmr", 1, 78.15, RE_SAM2),
    Published("CRAPNet", "cmr", 1, 75.59, RE_SAM2),
    Published("RE-SAM2", "cmr", 1, 82.18, RE_SAM2, remark=FINE_TUNED),
    Published("SAM2 without fine-tuning", "cmr", 1, 66.62, RE_SAM2),
    *_cross("PANet", (32.46,), (31.94,), FAMNET),
    *_cross("ADNet (MedIA 2022)", (41.73,), (42.55,), FAMNET),
    *_cross("CAT-Net", (46.21,), (45.60,), FAMNET),
    *_cross("RPT (MICCAI 2023)", (46.91,), (48.28,), FAMNET),
    *_cross("IFA (CVPR 2024)", (49.37,), (40.57,), FAMNET),
    *_cross("Q-Net", (49.44,), (45.77,), FAMNET),
    *_cross("PATNet", (52.97,), (57.29,), FAMNET),
    *_cross("RobustEMD (AIIM 2025)", (62.61, 60.16, 66.34, 70.26, 53.71), (60.95, 69.82, 63.79, 50.34, 59.88)),
    *_cross("SSL-ALPNet (TMI 2022)", (63.01, 70.74, 55.49, 67.43, 58.39), (47.46, 71.38, 34.48, 32.32, 51.67)),
    *_cross("DSM (TIP 2025)", (65.76, 72.94, 61.59, 69.52, 59.00), (62.59, 77.69, 56.60, 56.45, 59.63)),
    *_cross("FAMNet (AAAI 2025)", (65.79, 73.01, 57.28, 74.68, 58.21), (64.75, 73.57, 57.79, 61.89, 65.78), FAMNET),
    *_cross("PSP (2026)", (69.36, 70.24, 69.96, 78.70, 58.56), (68.25, 73.44, 64.48, 69.17, 65.91), PSP),
    *_cross(
        "FoB + SAM ViT-H (CVPR 2026)", (73.30, 75.05, 70.38, 79.57, 68.21), (67.02, 81.36, 57.18, 58.81, 70.71), FOB
    ),
)


def published_for(data: str, setting: int, trained_on: str) -> list[Published]:
    """The rows of one table, by rising mean; across data sets those of Setting I, the only ones there are."""
    own = "" if trained_on in (data, "none") else trained_on
    chosen = [row for row in PUBLISHED if (row.data, row.trained_on, row.setting) == (data, own, setting)]
    return sorted(chosen, key=lambda row: row.mean)
