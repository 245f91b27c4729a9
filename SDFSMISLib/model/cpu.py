"""Speed and reproducibility on a CPU: alignment of weights, a cheaper upsampling convolution."""

from __future__ import annotations

from itertools import chain

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import nn

ALIGNMENT = 64  # bytes, of torch's own allocations


def align(network: nn.Module) -> None:
    """Copy weights and buffers whose memory is not aligned as torch's own.

    Weights read from a file keep their alignment in the file. Some processors use other instructions then, and the same
    weights gave results that differ in the last bits, depending on whether they were loaded or created.
    """
    for tensor in chain(network.parameters(), network.buffers()):
        if not tensor.is_meta and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


LEAST_CHANNELS = 256  # halves the time with 256 and 512 channels, and saves nothing with 16 and 32


class FoldedUpsample(nn.Module):
    """diffusers' `Upsample2D` (nearest neighbour, then a 3 x 3 convolution) with 4/9 of its multiplications.

    Nearest-neighbour doubling makes 2 x 2 equal pixels of each, so a 3 x 3 kernel meets at most 2 x 2 different ones;
    which ones depends on the parity of row and column. The weights of equal pixels are summed, giving a 2 x 2 kernel
    for each of the four kinds of output pixel. The sums take milliseconds and are made in each call, so the parameters
    stay those of the convolution and keep their names (``conv.weight``).

    Args:
        conv: the 3 x 3 convolution of the doubled image, padding 1.

    Example:
        >>> conv, image = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 5, 4)
        >>> expected = conv(F.interpolate(image, scale_factor=2, mode="nearest"))
        >>> torch.allclose(FoldedUpsample(conv)(image), expected, atol=1e-5)
        True
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, hidden: torch.Tensor, output_size: torch.Size | None = None) -> torch.Tensor:
        """(N, C', 2h, 2w), or `output_size`, of (N, C, h, w)."""
        height, width = hidden.shape[-2:]
        if output_size is not None and tuple(output_size) != (2 * height, 2 * width):  # an odd side
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
    """Replace every upsampler of a diffusers network that `FoldedUpsample` can stand for."""
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
    """Kernels of the even and the odd rows (`dim` 2) or columns (`dim` 3) of the output: three weights become two."""
    first, middle, last = kernel.split(1, dim)
    return torch.cat([first, middle + last], dim), torch.cat([first + middle, last], dim)
