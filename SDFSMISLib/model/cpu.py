"""Networks on a CPU: weights at aligned addresses.

Upsampling on a CPU: the 3 x 3 convolution of a doubled image as four 2 x 2 convolutions of the image itself.
"""

from __future__ import annotations

from itertools import chain

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import nn

ALIGNMENT = 64  # bytes; torch's own memory begins at multiples of it


def align(network: nn.Module) -> None:
    """Let weights and buffers begin where torch's own memory would, copying those that do not.

    Weights that are read from a file lie where they lie in the file, and some processors compute by other instructions
    then: the same weights gave answers that differ in their last bits, by whether they were loaded or made.
    """
    for tensor in chain(network.parameters(), network.buffers()):
        if not tensor.is_meta and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


LEAST_CHANNELS = 256  # with 256 and 512 channels it takes half the time, with 16 and 32 no less than before


class FoldedUpsample(nn.Module):
    """What diffusers' `Upsample2D` computes, with 4/9 of its multiplications.

    Doubling by nearest neighbours makes 2 x 2 equal pixels of each, so that a 3 x 3 kernel meets no more than 2 x 2
    different ones; which, depends on whether row and column are even. The weights of equal pixels are added; each of
    the four kinds of output pixel has a 2 x 2 kernel. The weights themselves stay as they are: adding them takes
    milliseconds, and is done at each call.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """
        Args:
            conv: the convolution of the doubled image, 3 x 3, padded by 1; parameters keep their names (`conv.weight`).
        """
        super().__init__()
        self.conv = conv

    def forward(self, hidden: torch.Tensor, output_size: torch.Size | None = None) -> torch.Tensor:
        """(N, C, h, w) -> (N, C', 2h, 2w), or `output_size`."""
        height, width = hidden.shape[-2:]
        if output_size is not None and tuple(output_size) != (
            2 * height,
            2 * width,
        ):  # an odd side: not all pixels doubled
            return self.conv(F.interpolate(hidden, size=output_size, mode="nearest"))
        channels_last = hidden.is_contiguous(memory_format=torch.channels_last) and not hidden.is_contiguous()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        doubled = torch.empty(
            (hidden.shape[0], self.conv.out_channels, 2 * height, 2 * width),
            dtype=hidden.dtype,
            device=hidden.device,
            memory_format=layout,
        )
        padded = F.pad(hidden, (1, 1, 1, 1))
        for row, halves in enumerate(_folded(self.conv.weight, 2)):
            for column, kernel in enumerate(_folded(halves, 3)):
                window = padded[..., row : row + height + 1, column : column + width + 1]
                part = F.conv2d(window, kernel.contiguous(memory_format=layout), self.conv.bias)
                doubled[..., row::2, column::2] = part
        return doubled


def fold_upsampling(network: nn.Module) -> None:
    """Put a `FoldedUpsample` in the place of every upsampler of a diffusers network that it can stand for."""
    for module in list(network.modules()):
        if not isinstance(upsamplers := getattr(module, "upsamplers", None), nn.ModuleList):
            continue
        for index, old in enumerate(upsamplers):
            if isinstance(old, Upsample2D) and old.channels >= LEAST_CHANNELS and _is_plain(old):
                upsamplers[index] = FoldedUpsample(old.conv)


def _is_plain(upsample: Upsample2D) -> bool:
    conv = upsample.conv if upsample.use_conv and not upsample.use_conv_transpose and upsample.name == "conv" else None
    return (
        upsample.interpolate
        and upsample.norm is None
        and type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.padding, conv.stride, conv.groups) == ((3, 3), (1, 1), (1, 1), 1)
    )


def _folded(kernel: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Kernels of the even and the odd rows (`dim` 2) or columns (3) of the output: three weights become two."""
    first, middle, last = kernel.split(1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)
