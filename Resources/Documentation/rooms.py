"""Draws explanation/rooms.svg, the packages of SDFSMIS in layers, from the import contract in pyproject.toml.

Run it after a change of the contract: python Resources/Documentation/rooms.py
"""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
PYPROJECT = HERE.parents[1] / "pyproject.toml"
PANEL = "SDFSMISPanel"
CAPTIONS = {
    PANEL: "the module of 3D Slicer",
    "benchmark": "the published benchmark",
    "cli": "the commands",
    "client": "a server, seen from here",
    "cohort": "many scans, processes or Ray",
    "console": "progress and messages of the commands",
    "errors": "InputError",
    "evaluation": "protocols, metrics, baselines, report",
    "examples": "finished scans, libraries of them",
    "images": "geometry, intensity, volume, labelmap, files",
    "inference": "Segmenter, runs, registration",
    "model": "the paper: SQI, VTCT, U-Net",
    "options": "options of a run",
    "scene": "Slicer's MRML scene",
    "server": "HTTP around inference",
    "slices": "stacks of slices",
    "support": "painted slices",
    "training": "episodes, trainer",
    "wire": "packed arrays, requests",
    "workbench": "a front end without widgets",
}
WIDTH, HEIGHT, GAP, EDGE = 860, 46, 8, 10  # pixels
WITH_TORCH, WITHOUT_TORCH = ('fill="#dbe7f3" stroke="#5b7fa6"', 'fill="#e2efdf" stroke="#6a9a62"')
KEY = ((EDGE, WITHOUT_TORCH, "3D Slicer imports it: no torch"), (260, WITH_TORCH, "the server or a command imports it"))
TITLE = "The packages of SDFSMIS in layers; each uses only the layers below it"
STYLE = """.name { font-size: 15px; font-weight: 600; text-anchor: middle; fill: #1d2733 }
.what { font-size: 12px; text-anchor: middle; fill: #44515f }
.key { font-size: 13px; fill: #1d2733 }"""


def layers() -> tuple[list[list[str]], set[str]]:
    """The packages of each layer, the highest first; and those that must not need torch."""
    contracts = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    (order,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    (without,) = (contract["source_modules"] for contract in contracts if "never needs torch" in contract["name"])
    rows = [[name.strip(" ()") for name in layer.split("|")] for layer in order]
    return [[PANEL, *rows[0]], *rows[1:]], {name.rpartition(".")[2] for name in without}


def svg() -> str:
    rows, without_torch = layers()
    parts, y = [], EDGE
    for row in rows:
        width = (WIDTH - 2 * EDGE - GAP * (len(row) - 1)) / len(row)
        for number, name in enumerate(row):
            left = EDGE + number * (width + GAP)
            middle = left + width / 2
            colors = WITHOUT_TORCH if name in without_torch else WITH_TORCH
            parts += [
                f'<rect x="{left:.0f}" y="{y}" width="{width:.0f}" height="{HEIGHT}" rx="6" {colors}/>',
                f'<text x="{middle:.0f}" y="{y + 20}" class="name">{name}</text>',
                f'<text x="{middle:.0f}" y="{y + 36}" class="what">{CAPTIONS[name]}</text>',
            ]
        y += HEIGHT + GAP
    y += 6
    for left, colors, text in KEY:
        parts.append(f'<rect x="{left}" y="{y}" width="16" height="16" rx="3" {colors}/>')
        parts.append(f'<text x="{left + 24}" y="{y + 13}" class="key">{text}</text>')
    size = f'width="{WIDTH}" height="{y + 30}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {y + 30}" role="img"'
    start = [f'{head} font-family="system-ui, sans-serif">', f"<title>{TITLE}</title>", f"<style>{STYLE}</style>"]
    return "\n".join([*start, f'<rect {size} rx="8" fill="#ffffff"/>', *parts, "</svg>", ""])


if __name__ == "__main__":
    (HERE / "explanation" / "rooms.svg").write_text(svg(), encoding="utf-8", newline="\n")
