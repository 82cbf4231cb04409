# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Convolutions for inference: BatchNorm folded in, and no arithmetic that the answer does not need.

A factory makes them, so that one network can be built from those that suit a device:
``Convolution`` suits any; ``cpu_convolution`` chooses what is fastest in float32 on a CPU, and
``split_convolution`` on one with matrix units for bfloat16.
"""

from collections.abc import Callable, Mapping, Sequence
import math
from typing import NamedTuple

import torch
from torch import nn, Tensor
from torch.nn import functional

ACTIVATIONS = {None: lambda y: y, 'relu': torch.relu_, 'sigmoid': torch.sigmoid_}

# With more, too much of a Winograd tile lies outside the map, where a convolution saves its taps.
_MAX_NEAR_DILATION = 4
# With fewer channels than these there is too little to multiply for Winograd's transforms, or for
# splitting, to pay.
_MIN_WINOGRAD_CHANNELS = 128
_MIN_SPLIT_CHANNELS = 16
# Up to this a Winograd tile has 3x4 results, not 3x3: a tenth less to multiply, for a fifth more
# weights. In ResNet-50's dilated stages, of which the tasks share all, it did not pay.
_MAX_WIDE_DILATION = 1


def _matrix(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


class Transforms(NamedTuple):
    """
    A convolution by few products: outputs @ ((kernel @ taps) * (inputs @ pixels)).

    Lavin and Gray, 'Fast Algorithms for Convolutional Neural Networks', CVPR 2016, section 4.
    For F(n, 3) along one axis they are (n + 2, n + 2), (n + 2, 3) and (n, n + 2).
    """

    inputs: Tensor
    kernel: Tensor
    outputs: Tensor


# F(n, 3) by n, for the points 0, 1, -1, 2 and infinity, and for 0, 1, -1, 2, -2 and infinity.
_WINOGRAD = {
    3: Transforms(
        _matrix([2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0],
                [0, 2, -1, -2, 1]),
        _matrix([1 / 2, 0, 0], [-1 / 2, -1 / 2, -1 / 2], [-1 / 6, 1 / 6, -1 / 6],
                [1 / 6, 2 / 6, 4 / 6], [0, 0, 1]),
        _matrix([1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 1])),
    4: Transforms(
        _matrix([4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]),
        _matrix([1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
                [1 / 24, 2 / 24, 4 / 24], [1 / 24, -2 / 24, 4 / 24], [0, 0, 1]),
        _matrix([1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0],
                [0, 1, -1, 8, -8, 1])),
}
# Of chains by their number of pixels, before and after which there are none: Karatsuba's pairs,
# and F(n, 3) without the inputs at either end.
_CHAINS = {
    2: Transforms(_matrix([1, 1], [0, 1], [1, 0]), _matrix([0, 1, 0], [0, -1, 1], [1, -1, 0]),
                  _matrix([1, 1, 0], [1, 0, 1])),
    **{count: Transforms(inputs[:, 1:-1], kernel, outputs)
       for count, (inputs, kernel, outputs) in _WINOGRAD.items()},
}
# Of the arithmetic of taps that meet a pixel; the transforms take time, too.
_MAX_CHAINED = 0.55
# With fewer results for each input, the transforms take what the products save.
_MIN_CHAINED_CHANNELS = 256


def _along_both(table: Mapping[int, Transforms], counts: tuple[int, int]) -> Transforms:
    """Return the transforms along rows and columns together."""
    return Transforms(*(torch.kron(*pair) for pair in zip(
        *(table[count] for count in counts), strict=True)))


def _transformed(kernel: Tensor, weight: Tensor) -> Tensor:
    """Return (products, out, in, 1), a matrix for each product, of a weight (out, in, 3, 3)."""
    taps = weight.permute(2, 3, 0, 1)
    transformed = weight.new_empty(len(kernel), *taps.shape[2:], 1)
    if not weight.is_meta:  # as in `folded`
        transformed.copy_((kernel @ taps.reshape(9, -1).double()).view_as(transformed))
    return transformed


class Convolution(nn.Module):
    """
    A convolution with bias, an addend and an activation.

    :param weight: (out, in, h, w), the layout of nn.Conv2d.
    :param bias: (out,) or None.
    :param activation: None, 'relu' or 'sigmoid'.

    Rows and columns of the kernel that lie outside the map wherever it is placed are left out.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0,
                 dilation: int = 1, activation: str | None = None) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.activation = ACTIVATIONS[activation]
        self._keep(weight)
        self.register_buffer('bias', bias)

    def _keep(self, weight: Tensor) -> None:
        self.register_buffer('weight', weight.contiguous(memory_format=torch.channels_last))

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """Return activation(weight * x + bias + addend)."""
        weight, padding = self.taps(*x.shape[2:])
        y = functional.conv2d(x, weight, self.bias, self.stride, padding, self.dilation)
        return self.activation(y if addend is None else y.add_(addend))

    def taps(self, height: int, width: int) -> tuple[Tensor, list[int]]:
        """Return the weight without what never touches a map of this size, and the padding."""
        weight, padding = self.weight, [self.padding, self.padding]
        for axis, length in enumerate((height, width)):
            # Only 3-tap kernels dilate, and they keep the size: padding equals dilation.
            if self.dilation >= length and weight.shape[2 + axis] == 3:
                weight, padding[axis] = weight.narrow(2 + axis, 1, 1), 0
        return weight, padding


class AtrousConvolution(Convolution):
    """
    A convolution of 3x3 taps so far apart that on a small map few of them meet a pixel.

    A runtime may compute it by pairs, with a quarter less arithmetic than the taps that meet one.
    Along an axis where a pixel has one neighbour at most, at a distance d, let x and x' be such a
    pair and a, b, c the taps at -d, 0 and d. Then y = b x + c x' and y' = a x + b x' share a
    product (Karatsuba and Ofman, 'Multiplication of Multidigit Numbers on Automata', 1962):

        s = b (x + x'),   y = s + (c - b) x',   y' = s + (a - b) x

    Chains of three or four such pixels take 5 or 6 products, not 7 or 10: those of Winograd's
    F(3, 3) and F(4, 3), as nothing follows either end. Their weights take up to 30/9 the memory.
    Three rows x1, x2, x3 take 6 products, not 7, and no more memory for weights. With a, b and c
    the rows of taps, s = x1 + x2 / 2 and t = x2 + x3:

        y1 = b s           + (c - b / 2) x2
        y2 = b (s + t / 2) + (a - b) x1 + (c - b / 2) x3
        y3 = b t           + (a - b) x2
    """

    def comes_in_pairs(self, height: int, width: int) -> bool:
        """
        Tell whether along both axes of such a map there are pairs and singles, and no more.

        Along one alone the gain is 15 % of the convolution, and not worth the copies.
        """
        return all(self.dilation < length <= 2 * self.dilation for length in (height, width))

    def chains(self, height: int, width: int) -> tuple[int, int] | None:
        """
        Return of how many pixels the chains along both axes of such a map are.

        None where they do not pay: where pairs do, where a chain is too long, where too many of
        its places are empty, and with few channels to give.
        """
        d, size = self.dilation, (height, width)
        counts = tuple(-(-length // d) for length in size)
        if (self.comes_in_pairs(*size) or not all(count in _CHAINS for count in counts)
                or len(self.weight) < _MIN_CHAINED_CHANNELS):
            return None
        products = math.prod(len(_CHAINS[count].kernel) * d for count in counts)
        taps = math.prod(length + 2 * (length - d) for length in size)
        return counts if products < _MAX_CHAINED * taps else None

    def comes_in_thirds(self, height: int) -> bool:
        """Tell whether such a map is three taps high, and its results are worth the sums."""
        return height == 3 * self.dilation and len(self.weight) >= _MIN_CHAINED_CHANNELS

    def by_thirds(self, width: int) -> tuple[Tensor, Tensor]:
        """
        Return the rows a - b and c - b / 2, (out, in, 2, w), and b, (out, in, 1, w).

        The columns of taps that never touch a map of this width are left out.
        """
        before, centre, after = self.taps(3 * self.dilation, width)[0].unbind(2)
        return torch.stack([before - centre, after - centre / 2], 2), centre.unsqueeze(2)

    def chained_bytes(self, counts: tuple[int, int]) -> int:
        """Return what the matrices of `by_chains` take."""
        products = math.prod(len(_CHAINS[count].kernel) for count in counts)
        return products * self.weight.nbytes // 9

    def by_chains(self, counts: tuple[int, int]) -> Transforms:
        """
        Return what turns chains of `counts` (rows, columns) of pixels into their results.

        `kernel` is that of this convolution, (products, out, in, 1).
        """
        inputs, kernel, outputs = _along_both(_CHAINS, counts)
        return Transforms(inputs.to(self.weight.dtype), _transformed(kernel, self.weight),
                          outputs.to(self.weight.dtype))


class SplitConvolution(Convolution):
    """
    A convolution whose products a runtime may compute in bfloat16, nearly as well as in float32.

    Henry, Tang and Heinecke, 'Leveraging the bfloat16 Artificial Intelligence Datatype For
    Higher-Precision Computations', ARITH 2019: with x = x1 + x2 and w = w1 + w2, x1 and w1 being
    the nearest bfloat16 and x2 and w2 those nearest to what is left,

        w x = w1 x1 + w1 x2 + w2 x1

    to 2**-16 of |w x|. Where such products are eight times as fast as those of float32, three of
    them are faster than one. Their sums have to be kept in float32.

    `parts` holds w1 and w2 as they are multiplied: (2, out, in, h, w); with far apart taps (2, h,
    w, out, in), as each tap is a product of its own. A kernel of one tap that gives no fewer
    channels than it takes has w1, w2 and w1 side by side, (out, 3 * in, 1, 1), for x1, x1 and x2:
    one product, for it is the results that are many.
    """

    def _keep(self, weight: Tensor) -> None:
        out, channels, *kernel = weight.shape
        if kernel == [1, 1] and out >= channels:
            shape = out, 3 * channels, 1, 1
        else:
            shape = (2, *kernel, out, channels) if self.taps_are_far else (2, *weight.shape)
        parts = weight.new_empty(shape, dtype=torch.bfloat16)
        if not weight.is_meta:  # as in `folded`
            high = weight.to(torch.bfloat16)
            low = (weight - high).to(torch.bfloat16)
            if parts.dim() == 4:
                torch.cat([high, low, high], dim=1, out=parts)
            else:
                both = torch.stack([high, low])
                parts.copy_(both.permute(0, 3, 4, 1, 2) if self.taps_are_far else both)
        self.register_buffer('parts', parts)

    @property
    def taps_are_far(self) -> bool:
        """Tell whether each tap is a product of its own, over the pixels that it meets."""
        return self.dilation > _MAX_NEAR_DILATION

    @property
    def is_side_by_side(self) -> bool:
        """Tell whether the three products are one."""
        return self.parts.dim() == 4

    @property
    def weight(self) -> Tensor:
        """Return the weight, to 2**-16, in float32."""
        if self.is_side_by_side:
            high, low, _ = self.parts.chunk(3, dim=1)
        else:
            high, low = self.parts.permute(0, 3, 4, 1, 2) if self.taps_are_far else self.parts
        return high.float() + low.float()


Factory = Callable[..., nn.Module]


def fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None = None,
         activation: str | None = None, factory: Factory = Convolution) -> nn.Module:
    """Return the convolution with the BatchNorm in evaluation that follows it folded in."""
    weight, bias = folded(convolution, norm)
    return factory(weight, bias, convolution.stride[0], convolution.padding[0],
                   convolution.dilation[0], activation)


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of convolution and BatchNorm together, computed in float64."""
    weight, bias = convolution.weight.detach(), convolution.bias
    if norm is None:  # a copy all the same: a view would keep all of a mapped weights file
        return weight.clone(), None if bias is None else bias.detach().clone()
    if weight.is_meta:  # torch would load its compiler to find the shapes: 80 MiB, and seconds
        return weight, norm.bias.detach()
    scale = norm.weight.detach().double() / torch.sqrt(norm.running_var.double() + norm.eps)
    offset = -norm.running_mean.double() if bias is None else bias.detach() - norm.running_mean
    return ((weight * scale.view(-1, 1, 1, 1)).to(weight.dtype),
            (offset * scale + norm.bias.detach()).to(weight.dtype))


def cpu_convolution(weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0,
                    dilation: int = 1, activation: str | None = None) -> nn.Module:
    """Return the convolution that is fastest in float32 on a CPU."""
    if stride == 1 and weight.shape[2:] == (3, 3):
        if dilation > _MAX_NEAR_DILATION:
            return AtrousConvolution(weight, bias, stride, padding, dilation, activation)
        if min(weight.shape[:2]) >= _MIN_WINOGRAD_CHANNELS:
            return WinogradConvolution(weight, bias, dilation, activation)
    return Convolution(weight, bias, stride, padding, dilation, activation)


def split_convolution(weight: Tensor, bias: Tensor | None, *arguments, **options) -> nn.Module:
    """Return the convolution that is fastest where bfloat16 products are eight times as fast."""
    enough = min(weight.shape[:2]) >= _MIN_SPLIT_CHANNELS
    return (SplitConvolution if enough else Convolution)(weight, bias, *arguments, **options)


class WinogradConvolution(nn.Module):
    """
    A 3x3 convolution that keeps the size, with 2.5 multiplications for each pixel instead of 9.

    Lavin and Gray, 'Fast Algorithms for Convolutional Neural Networks', CVPR 2016, section 4:
    F(3x4, 3x3). Tiles of 5x6 inputs, overlapping by two, give 3x4 outputs. With a dilation d the
    map falls into d*d independent maps, and from d = 2 on tiles are 5x5, for 3x3 outputs and 2.78
    multiplications. All steps are matrix products. `tile` is (rows, columns) of outputs.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int = 1,
                 activation: str | None = None) -> None:
        super().__init__()
        self.tile = (3, 4) if dilation <= _MAX_WIDE_DILATION else (3, 3)
        inputs, kernel, outputs = _along_both(_WINOGRAD, self.tile)
        # One matrix for each of the 30 or 25 products: (products, out, in, 1), so that the format
        # in memory says, as for any convolution's weight, whether results are last.
        self.register_buffer('weight', _transformed(kernel, weight).contiguous(
            memory_format=torch.channels_last))
        self.register_buffer('bias', bias)
        self.register_buffer('inputs', inputs.to(weight.dtype))
        self.register_buffer('outputs', outputs.to(weight.dtype))
        self.dilation = dilation
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, addend: Tensor | None = None) -> Tensor:
        """Return activation(weight * x + bias + addend)."""
        count, channels, height, width = x.shape
        d, (down, right) = self.dilation, self.tile
        rows, columns = self.tiles(height, width)
        padded = functional.pad(x.permute(0, 2, 3, 1), (
            0, 0, d, (right * columns + 1) * d - width, d, (down * rows + 1) * d - height))
        image, row, column, _ = padded.stride()
        tiles = padded.as_strided(
            (down + 2, right + 2, count, rows, d, columns, d, channels),
            (d * row, d * column, image, down * d * row, row, right * d * column, column, 1))
        transformed = self.inputs @ tiles.reshape(self.inputs.shape[1], -1)
        products = torch.bmm(transformed.view(len(self.inputs), -1, channels),
                             self.weight.squeeze(3).mT)
        y = self.outputs @ products.view(len(self.inputs), -1)
        y = y.view(down, right, count, rows, d, columns, d, -1).permute(2, 3, 0, 4, 5, 1, 6, 7)
        y = y.reshape(count, down * d * rows, right * d * columns, -1)
        y = y[:, :height, :width].add_(self.bias).permute(0, 3, 1, 2)
        return self.activation(y if addend is None else y.add_(addend))

    def tiles(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of tiles that cover each of the independent maps."""
        down, right = (side * self.dilation for side in self.tile)
        return -(-height // down), -(-width // right)
