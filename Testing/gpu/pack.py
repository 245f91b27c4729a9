"""Training volumes in one small file, which travels to a machine with a GPU and needs neither SimpleITK nor a manifest.

::

    python Testing/gpu/pack.py --config built_in_next --cases DATA/cases.json --label-maps DATA/label_maps.json \
        --cache ../training/RUN/cache --output .gpu/volumes.npz
    python Testing/gpu/pack.py --output .gpu/volumes.npz          # without data: small synthetic scans

Images become 8 bits and WebP, all slices of a scan on one picture; labels and supervoxels are compressed without loss,
supervoxels at the half size at which they were found. Of groups with many or with large volumes a few are taken
(`--at-most`), and supervoxels of a few scans of each group. The file holds what its manifests name, so it may be passed
on where they may, and is not committed.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from SDFSMISLib.images.geometry import SliceOrientation
from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.supervoxels import HALVED_FROM, Slic
from SDFSMISLib.training.synthesis import synthetic_labels
from SDFSMISLib.training.volumes import (
    MOST_LOOKS,
    ScanAxis,
    TrainingVolume,
    label_volumes,
    load_training_volumes,
)

MB = 1_000_000
QUALITY = 40  # of WebP: about 0.4 bits per voxel
AT_MOST = {"em_flyem": 1, "breast_dce": 1, "lm_synthseg": 3, "lm_headneck": 2, "lm_spl": 2}  # volumes of a group
SUPERVOXELS = 4  # scans of a group that keep theirs


def write_volumes(volumes: Sequence[TrainingVolume], path: Path, quality: int = QUALITY) -> dict[str, int]:
    """Write volumes to a file, ``.npz``; returns the bytes of each kind of content."""
    arrays: dict[str, np.ndarray] = {}
    entries = []
    for number, volume in enumerate(volumes):
        parts = {"image": _picture(volume.image, quality)} if volume.image is not None else {}
        parts |= {f"map{k}": _compressed(one) for k, one in enumerate(_small_maps(volume))}
        arrays |= {f"{number}.{name}": np.frombuffer(content, np.uint8) for name, content in parts.items()}
        entries.append(_entry(volume))
    arrays["header"] = np.frombuffer(json.dumps(entries).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    sizes: dict[str, int] = {}
    for name, content in arrays.items():
        kind = name.rpartition(".")[2]
        sizes[kind] = sizes.get(kind, 0) + content.size
    return sizes


def read_volumes(path: Path, threads: int = 16) -> list[TrainingVolume]:
    """The volumes of a file that `write_volumes` made."""
    with np.load(path) as kept:
        arrays = {name: kept[name].tobytes() for name in kept.files}
    entries = json.loads(arrays["header"])
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda pair: _volume(pair[1], arrays, pair[0]), enumerate(entries)))


def example_scans(count: int = 3, side: int = 32) -> list[TrainingVolume]:
    """Small synthetic scans of one group, with labels and supervoxels, and a label volume."""
    made = []
    for number in range(count):
        rng = np.random.default_rng(number)
        labels = synthetic_labels(rng, side)
        greys = np.random.default_rng(0).uniform(-0.9, 0.9, 32)
        image = (greys[labels] + rng.normal(0, 0.05, labels.shape)).clip(-1, 1).astype(np.float16)
        spacing, plain = (1.0, 1.0, 1.0), SliceOrientation(False, False, False)
        made.append(
            TrainingVolume(
                name=f"example_{number}",
                image=image,
                maps=(labels.astype(np.uint16), Slic(20)(image, spacing)),
                labelled=True,
                spacing=spacing,
                axes=(0, 1, 2),
                orientations=(plain, plain, plain),
                group="examples",
                main=ScanAxis(0, "axial", True),
            )
        )
    labels = made[0].maps[0].astype(np.uint8)
    looks = np.where(labels > 0, 1 + labels % MOST_LOOKS, 0).astype(np.uint8)
    return [*made, replace(made[0], name="example_labels", image=None, maps=(looks, labels), main=None)]


def chosen(manifest: Path, at_most: dict[str, int], folder: Path) -> Path:
    """A manifest in `folder` with so many of the training cases of a group, spread evenly over them."""
    content = json.loads(manifest.read_text(encoding="utf-8"))
    by_group: dict[str, list[dict[str, Any]]] = {}
    for case in content["cases"]:
        if case.get("split", "train") == "train":
            paths = {key: str((manifest.parent / case[key]).resolve()) for key in ("image", "labels") if key in case}
            by_group.setdefault(case["group"], []).append(case | paths)
    kept: list[dict[str, Any]] = []
    for group, cases in by_group.items():
        count = min(len(cases), at_most.get(group, len(cases)))
        kept += [cases[number * len(cases) // count] for number in range(count)]
    (folder / manifest.name).write_text(json.dumps(content | {"cases": kept}), encoding="utf-8")
    return folder / manifest.name


def with_few_supervoxels(volumes: Sequence[TrainingVolume], most: int) -> list[TrainingVolume]:
    """The volumes, of which `most` scans of each group keep their supervoxels."""
    seen: dict[str, int] = {}
    made = []
    for volume in volumes:
        number = seen[volume.source] = seen.get(volume.source, 0) + 1
        is_bare = volume.image is not None and number > most
        made.append(replace(volume, maps=volume.maps[:1]) if is_bare else volume)
    return made


# -- one volume


def _entry(volume: TrainingVolume) -> dict[str, Any]:
    return {
        "name": volume.name,
        "shape": volume.maps[0].shape,
        "types": [one.dtype.name for one in volume.maps],
        "is_scan": volume.image is not None,
        "spacing": volume.spacing,
        "axes": volume.axes,
        "orientations": [[turn.transpose, turn.flip_rows, turn.flip_columns] for turn in volume.orientations],
        "group": volume.group,
        "main": volume.main and [volume.main.number, volume.main.plane, volume.main.rising],
    }


def _volume(entry: dict[str, Any], arrays: dict[str, bytes], number: int) -> TrainingVolume:
    shape = tuple(entry["shape"])
    maps = []
    for k, kind in enumerate(entry["types"]):
        kept = np.frombuffer(lzma.decompress(arrays[f"{number}.map{k}"]), kind)
        is_small = entry["is_scan"] and k > 0
        small = tuple(-(-side // _step(side)) for side in shape) if is_small else shape
        kept = kept.reshape(small)
        for axis, side in enumerate(shape if is_small else ()):
            kept = np.repeat(kept, _step(side), axis=axis).take(np.arange(side), axis=axis)
        maps.append(kept)
    if not entry["is_scan"]:
        maps[0] = _looks(maps[1], around=maps[0])
    first, second, third = (SliceOrientation(*turn) for turn in entry["orientations"])
    return TrainingVolume(
        name=entry["name"],
        image=_image(arrays[f"{number}.image"], shape) if entry["is_scan"] else None,
        maps=tuple(maps),
        labelled=True,
        spacing=tuple(entry["spacing"]),
        axes=tuple(entry["axes"]),
        orientations=(first, second, third),
        group=entry["group"],
        main=ScanAxis(*entry["main"]) if entry["main"] else None,
    )


def _small_maps(volume: TrainingVolume) -> list[np.ndarray]:
    """The maps without what the others, or their own half, tell."""
    if volume.image is None:
        looks, labels = volume.maps
        around = np.where(labels > 0, looks.dtype.type(0), looks)
        assert np.array_equal(_looks(labels, around), looks), volume.name
        return [around, labels]
    labels, *supervoxels = volume.maps
    steps = tuple(slice(None, None, _step(side)) for side in labels.shape)
    return [labels, *(one[steps] for one in supervoxels)]


def _step(side: int) -> int:
    return 2 if side >= HALVED_FROM else 1


def _looks(labels: np.ndarray, around: np.ndarray) -> np.ndarray:
    return np.where(labels > 0, (1 + labels % MOST_LOOKS).astype(around.dtype), around)


def _compressed(labels: np.ndarray) -> bytes:
    return lzma.compress(np.ascontiguousarray(labels).tobytes(), preset=6)


def _picture(image: np.ndarray, quality: int) -> bytes:
    levels = ((image.astype(np.float32) + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
    slices, rows, columns = levels.shape
    down, across = _tiles(slices, rows, columns)
    padded = np.zeros((down * across, rows, columns), np.uint8)
    padded[:slices] = levels
    mosaic = padded.reshape(down, across, rows, columns).swapaxes(1, 2).reshape(down * rows, across * columns)
    file = io.BytesIO()
    Image.fromarray(mosaic).save(file, "WEBP", quality=quality, method=6)
    return file.getvalue()


def _image(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
    slices, rows, columns = shape
    down, across = _tiles(slices, rows, columns)
    mosaic = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    tiles = mosaic.reshape(down, rows, across, columns).swapaxes(1, 2).reshape(-1, rows, columns)
    return (tiles[:slices].astype(np.float32) / 127.5 - 1).astype(np.float16)


def _tiles(slices: int, rows: int, columns: int) -> tuple[int, int]:
    """(down, across) of a picture of all slices that is about square: its sides are limited."""
    across = min(slices, max(1, round((slices * rows / columns) ** 0.5)))
    return -(-slices // across), across


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path(".gpu/volumes.npz"))
    parser.add_argument("--config", type=Path, default=Path("built_in_next"), help="what to take and leave out")
    parser.add_argument("--cases", help="manifest of scans; without it, small synthetic scans are packed")
    parser.add_argument("--label-maps", default="", help="manifest of label volumes")
    given_counts = " ".join(f"{group}={count}" for group, count in AT_MOST.items())
    parser.add_argument(
        "--at-most", nargs="*", default=given_counts.split(), metavar="GROUP=N", help=f"volumes; default {given_counts}"
    )
    parser.add_argument("--supervoxels", type=int, default=SUPERVOXELS, help="scans of a group that keep theirs")
    parser.add_argument("--cache", type=Path, default=Path("../training/supervoxels"), help="of supervoxels")
    parser.add_argument("--quality", type=int, default=QUALITY, help="of the images, 1 to 100")
    parser.add_argument("--most", type=float, default=20.0, help="MB that the file may take")
    given = parser.parse_args(words)
    if given.cases is None:
        volumes = example_scans()
    else:
        config = TrainingConfig.read(given.config, cases=given.cases, label_maps=given.label_maps)
        given.cache.mkdir(parents=True, exist_ok=True)
        pairs = (words.partition("=") for words in given.at_most)
        at_most = {group: int(count) for group, _, count in pairs}
        with tempfile.TemporaryDirectory() as folder:
            volumes = load_training_volumes(chosen(Path(given.cases), at_most, Path(folder)), given.cache, config)
            volumes = with_few_supervoxels(volumes, given.supervoxels)
            if given.label_maps:
                volumes += label_volumes(chosen(Path(given.label_maps), at_most, Path(folder)), config)
    sizes = write_volumes(volumes, given.output, given.quality)
    for kind, size in sizes.items():
        print(f"{kind:8} {size / MB:6.2f} MB")
    total = given.output.stat().st_size / MB
    print(f"{given.output}: {len(volumes)} volumes, {total:.2f} MB")
    if total > given.most:
        raise SystemExit(f"That is more than {given.most} MB: lower --quality, or take fewer volumes (--at-most).")


if __name__ == "__main__":
    main()
