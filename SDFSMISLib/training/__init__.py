"""Training: episodes, supervoxels, synthesis and the trainer."""

from pathlib import Path

CONFIGURATIONS = {path.stem: path for path in sorted((Path(__file__).parent / "configs").glob("*.json"))}
"""The configurations that come with the package, by name."""
