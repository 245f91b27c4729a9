"""Scans to try the module on, in Slicer's Sample Data module; they are Slicer's own testing data."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SAMPLES", "Sample", "register_sample_data"]

CATEGORY = "SDFSMIS"
ICONS = Path(__file__).resolve().parent.parent / "Resources" / "Icons"

logger = logging.getLogger("SDFSMIS")


@dataclass(frozen=True)
class Sample:
    """A scan among Slicer's testing data.

    Attributes:
        name: shown below the thumbnail.
        node: name of the volume in the scene.
        file: name in Slicer's cache, that of Slicer's own sample, so that no scan is downloaded twice.
        sha256: of the file, in hex; its address, too.
        thumbnail: file in Resources/Icons.
    """

    name: str
    node: str
    file: str
    sha256: str
    thumbnail: str


SAMPLES = (
    Sample(
        name="MR head: try the ventricles",
        node="MRHead",
        file="MR-head.nrrd",
        sha256="cc211f0dfd9a05ca3841ce1141b292898b2dd2d3f08286affadf823a7e58df93",
        thumbnail="MRHead.png",
    ),
    Sample(
        name="CTA abdomen: try the liver",
        node="CTAAbdomenPanoramix",
        file="Panoramix-cropped.nrrd",
        sha256="146af87511520c500a3706b7b2bfb545f40d5d04dd180be3a7a2c6940e447433",
        thumbnail="CTAbdomen.png",
    ),
)


def register_sample_data() -> None:
    """Add the samples to the Sample Data module, in a category of their own; a second call adds nothing.

    To be called after Slicer's ``startupCompleted()``, when the Sample Data module is loaded. Nothing is downloaded
    before the user clicks a thumbnail. An application without that module has no samples.
    """
    try:
        import SampleData
    except ImportError:
        logger.info("No sample data: this application has no Sample Data module.")
        return
    from slicer.util import TESTING_DATA_URL

    logic = SampleData.SampleDataLogic
    if hasattr(logic, "registerCustomSampleDataCategory"):  # since Slicer 5.12; before, a source makes its category
        logic.registerCustomSampleDataCategory(CATEGORY, title="SDFSMIS")
    for sample in SAMPLES:
        logic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=sample.name,
            uris=f"{TESTING_DATA_URL}SHA256/{sample.sha256}",
            fileNames=sample.file,
            nodeNames=sample.node,
            checksums=f"SHA256:{sample.sha256}",
            thumbnailFileName=str(ICONS / sample.thumbnail),
        )
