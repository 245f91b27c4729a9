"""What a backend costs beside the bare library: `python Testing/Benchmarks/backend.py [--rounds 5] [--json FILE]`.

- Overhead: a scan of 100 slices of 256 x 256, one painted, by `Segmenter` in this process and by `RemoteSegmenter`
  through a backend on loopback, in turn; the second and later runs on the backend send no slice.
- Upload: 300 slices of 512 x 512, int16, as they are over loopback, and compressed as they go to another computer (over
  this computer's own address, so the seconds are those of packing, not of a network).
- Correction: the same scan again with a second painted slice; beside the first run, which sent everything.

Both processes use as many threads as torch takes by itself. Ratios are of medians within this run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from SDFSMISLib import Segmenter, SupportSet, Volume
from SDFSMISLib.client.backend_process import BackendProcess, start_backend
from SDFSMISLib.client.capabilities import fetch_capabilities
from SDFSMISLib.client.connection import Address, Connection, Endpoint, Interrupt
from SDFSMISLib.client.upload import plan_upload, send_missing
from SDFSMISLib.images.volume import Geometry
from SDFSMISLib.inference.remote import RemoteSegmenter
from SDFSMISLib.slices import SliceStack


def scan_of(slices: int, side: int) -> tuple[Volume, np.ndarray]:
    """A scan (int16) of a rod that bends through noisy tissue, and the rod's mask."""
    rng = np.random.default_rng(0)
    places = np.linspace(-1, 1, side)
    rows, columns = places[:, None], places[None]
    rod = np.stack([(rows - 0.2 * np.sin(3 * z)) ** 2 + (columns - 0.1) ** 2 < 0.04 for z in np.linspace(0, 1, slices)])
    body = (rows**2 + columns**2 < 0.8)[None]
    voxels = np.where(body, 1000 + 150 * rod + rng.normal(0, 20, (slices, side, side)), 0).astype(np.int16)
    geometry = Geometry(voxels.shape, (1.0, 1.0, 3.0), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    return Volume(voxels, geometry), rod


def painted_at(scan: Volume, mask: np.ndarray, *indices: int) -> SupportSet:
    painted = np.zeros(mask.shape, dtype=np.uint8)
    for index in indices:
        painted[index] = mask[index]
    return SupportSet.from_labelmap(scan, Volume(painted, scan.geometry), 1, axis=0)


def seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def received(url: str, token: str) -> int:
    """Bytes that a backend has received in the bodies of requests."""
    asked = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked) as answer:
        found = re.search(r"^sdfsmis_received_bytes_total (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def own_address() -> str | None:
    """An address of this computer that is not loopback."""
    addresses = (one for each in psutil.net_if_addrs().values() for one in each if one.family == socket.AF_INET)
    return next((one.address for one in addresses if not one.address.startswith("127.")), None)


def overhead(backend: BackendProcess, rounds: int) -> dict[str, float]:
    scan, mask = scan_of(100, 256)
    support = painted_at(scan, mask, 50)
    local, remote = Segmenter.from_pretrained(), RemoteSegmenter(backend.client())
    local.segment(scan, support, slices=range(45, 55))  # the first pass pays for what is prepared once
    spent: dict[str, list[float]] = {"library": [], "backend": []}
    first = seconds(lambda: remote.segment(scan, support))
    for _ in range(rounds):
        spent["library"].append(seconds(lambda: local.segment(scan, support)))
        spent["backend"].append(seconds(lambda: remote.segment(scan, support)))
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return {
        "library s": medians["library"],
        "backend, first run s": first,
        "backend s": medians["backend"],
        "backend / library": medians["backend"] / medians["library"],
    }


def upload(url: str, token: str) -> dict[str, float]:
    scan, _ = scan_of(300, 512)
    stacks, before = SliceStack.along(scan, [0]), received(url, token)

    def send() -> None:
        with Connection(Endpoint(Address.of(url), token, None, 30.0), Interrupt()) as connection:
            planned = plan_upload(stacks, range(stacks[0].count), (), lambda: None)
            send_missing(connection, planned, fetch_capabilities(connection).limits)

    spent, again = seconds(send), seconds(send)
    sent = received(url, token) - before
    return {"scan MB": scan.voxels.nbytes / 1e6, "sent MB": sent / 1e6, "s": spent, "again s": again}


def correction(backend: BackendProcess) -> dict[str, float]:
    scan, mask = scan_of(100, 200)
    remote = RemoteSegmenter(backend.client())
    figures: dict[str, float] = {}
    for name, indices in (("first", (50,)), ("correction", (50, 80))):
        before = received(backend.url, backend.token)
        figures[f"{name} s"] = seconds(lambda indices=indices: remote.segment(scan, painted_at(scan, mask, *indices)))
        figures[f"{name} sent MB"] = (received(backend.url, backend.token) - before) / 1e6
    figures["correction / first, s"] = figures["correction s"] / figures["first s"]
    figures["correction / first, sent"] = figures["correction sent MB"] / figures["first sent MB"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with start_backend() as backend:
        report = {
            "overhead": overhead(backend, options.rounds),
            "correction": correction(backend),
            "upload, loopback": upload(backend.url, backend.token),
        }
    own = own_address()
    if own is not None:
        with start_backend(arguments=("--host", own)) as backend:
            report["upload, compressed"] = upload(backend.url, backend.token)
    for name, figures in report.items():
        print(f"{name}: " + ", ".join(f"{what} {figure:.3g}" for what, figure in figures.items()))
    if options.json is not None:
        options.json.write_text(json.dumps({"cpus": os.cpu_count(), **report}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
