"""From a finished slice to its neighbour: dense registration, so that the network need only correct what it brings.

Dense inverse search (Kroeger et al., "Fast optical flow using dense inverse search", ECCV 2016), as OpenCV has it: on
the network's grid it takes two to three milliseconds. What was measured for its settings is in Resources/MODEL_CARD.md.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F

SMOOTHNESS = (
    10.0  # weight of the field's smoothness; OpenCV's own 20 is for videos, which move less from image to image
)


def displacement(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Where in `moving` each pixel of `fixed` is found.

    Args:
        moving, fixed: (side, side) in [-1, 1], of one scan, as they are: a region's contrast helps the network, not
            the registration.

    Returns:
        (side, side, 2) float32: pixels to go to the right and down.
    """
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow.setFinestScale(0)  # the grid is coarse: nothing may be left out
    flow.setVariationalRefinementAlpha(SMOOTHNESS)
    found = flow.calc(_bytes(fixed), _bytes(moving), None)  # type: ignore[call-overload]
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def carried(images: torch.Tensor, displacements: torch.Tensor) -> torch.Tensor:
    """Images (N, side, side) as the slices look like to which `displacements` (N, side, side, 2) belong."""
    side = images.shape[-1]
    places = torch.arange(side, dtype=torch.float32, device=images.device)
    rows, columns = torch.meshgrid(places, places, indexing="ij")
    here = torch.stack([columns, rows], dim=-1)  # grid_sample counts columns first
    grid = (here + displacements.to(images.device) + 0.5) * (2 / side) - 1
    moved = F.grid_sample(images[:, None].float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved[:, 0]


def _bytes(image: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(((image.float().cpu().numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8))
