"""Pictures: arrays made into what Qt shows, by way of a PNG, which Slicer's Python can hand to Qt on every version."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np

__all__ = ["dot", "pixmap", "png", "square"]

COLOR_TYPES = {3: 2, 4: 6}  # values of a pixel -> PNG's colour type


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 ``(rows, columns, 3)`` or ``(rows, columns, 4)``: red, green, blue, opacity."""
    rows, columns, values = pixels.shape
    lines = np.zeros((rows, 1 + columns * values), dtype=np.uint8)  # each line begins with its filter, 0 = none
    lines[:, 1:] = pixels.reshape(rows, -1)
    head = struct.pack(">IIBBBBB", columns, rows, 8, COLOR_TYPES[values], 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def pixmap(pixels: np.ndarray) -> Any:
    """A QPixmap of what :func:`png` takes."""
    import qt

    made = qt.QPixmap()
    made.loadFromData(qt.QByteArray(png(pixels)))
    return made


def square(color: tuple[float, float, float], side: int = 14) -> Any:
    """A QPixmap in one colour: red, green, blue from 0 to 1."""
    return pixmap(np.broadcast_to(_bytes(color), (side, side, 3)))


def dot(color: tuple[float, float, float], side: int = 14) -> Any:
    """A QPixmap with a disc in one colour, red, green, blue from 0 to 1, on nothing."""
    place = np.arange(side) - (side - 1) / 2
    edge = side / 2 - np.hypot(place[:, None], place[None, :])
    pixels = np.empty((side, side, 4), dtype=np.uint8)
    pixels[..., :3] = _bytes(color)
    pixels[..., 3] = np.rint(255 * np.clip(edge, 0, 1))
    return pixmap(pixels)


def _bytes(color: tuple[float, float, float]) -> np.ndarray:
    return np.rint(255 * np.clip(color, 0, 1)).astype(np.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
