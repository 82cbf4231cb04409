# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Convolutions for inference: BatchNorm folded in, and no arithmetic that the answer does not need.

A factory makes them, so that one network can be built from those that suit a device:
``Convolution`` suits any; ``cpu_convolution`` chooses what is fastest in float32 on a CPU by
PyTorch, ``tiled_convolution`` by a runtime that is written for one size of map, and
``split_convolution`` by one on matrix units for bfloat16.
"""

from collections.abc import Callable, Mapping, Sequence
import itertools
import math
from typing import NamedTuple

import torch
from torch import nn, Tensor
from torch.nn import functional

ACTIVATIONS = {None: lambda y: y, 'relu': torch.relu_, 'sigmoid': torch.sigmoid_}

# With more, too much of a Winograd tile lies outside the map, where a convolution saves its taps.
_MAX_NEAR_DILATION = 4
# With fewer channels there is too little to multiply for splitting to pay.
_MIN_SPLIT_CHANNELS = 16
# Up to this a Winograd tile in PyTorch has 3x4 results, not 3x3: a tenth less to multiply, for a
# fifth more weights. In ResNet-50's dilated stages, of which the tasks share all, it did not pay.
_MAX_WIDE_DILATION = 1
# Reading a matrix of weights takes as long as multiplying so many pixels with it.
_PIXELS_FOR_WEIGHTS = 16


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


class TileTransforms(NamedTuple):
    """
    A convolution of tiles: outputs @ (kernel * (inputs @ pixels)).

    Of inputs and outputs there is a matrix along rows and one along columns: one after the other
    they are faster than both as one, for 8x8 inputs of 64x64. `kernel` is (products, out, in, 1).
    """

    inputs: tuple[Tensor, Tensor]
    kernel: Tensor
    outputs: tuple[Tensor, Tensor]


def _polynomial(roots: Sequence[float]) -> list[float]:
    """Return the coefficients, of the lowest power first."""
    coefficients = [1.0]
    for root in roots:
        coefficients = [lower - root * higher for lower, higher in
                        zip([0, *coefficients], [*coefficients, 0], strict=True)]
    return coefficients


def _cook_toom(*points: float) -> Transforms:
    """Return F(n, 3) for n + 1 points and infinity."""
    powers = _matrix(*([point ** power for power in range(len(points))] for point in points))
    others = [[other for other in points if other != point] for point in points]
    distances = _matrix([math.prod(point - other for other in rest)
                         for point, rest in zip(points, others, strict=True)])
    infinity = _matrix([0] * (len(points) - 2) + [1])
    return Transforms(
        _matrix(*([*_polynomial(rest), 0] for rest in others), _polynomial(points)),
        torch.cat([powers[:, :3] / distances.T, infinity[:, -3:]]),
        torch.cat([powers[:, :-1], infinity]).T.contiguous())


# F(n, 3) by n. With 6 a convolution of 512 channels is off by 2e-5 of its largest result, not by
# 5e-6: the frame is not further from one of float64, where other sums round as much.
_WINOGRAD = {3: _cook_toom(0, 1, -1, 2), 4: _cook_toom(0, 1, -1, 2, -2),
             5: _cook_toom(0, 1, -1, 2, -2, 1 / 2), 6: _cook_toom(0, 1, -1, 2, -2, 1 / 2, -1 / 2)}
# Of chains by their number of pixels, before and after which there are none: Karatsuba's pairs,
# four cubes for three pixels, and F(n, 3) without the inputs at either end.
_CHAINS = {
    2: Transforms(_matrix([1, 1], [0, 1], [1, 0]), _matrix([0, 1, 0], [0, -1, 1], [1, -1, 0]),
                  _matrix([1, 1, 0], [1, 0, 1])),
    3: Transforms(
        _matrix([1, 3 / 2, 1], [-1, 3 / 2, -1], [1, 1 / 2, -1], [-1, 1 / 2, 1]),
        _matrix([1 / 6, 1 / 4, 1 / 6], [-1 / 6, 1 / 4, -1 / 6], [1 / 2, -1 / 4, -1 / 2],
                [-1 / 2, -1 / 4, 1 / 2]),
        _matrix([1, -1, -1, 1], [3 / 2, 3 / 2, 1 / 2, 1 / 2], [1, -1, 1, -1])),
    **{count: _WINOGRAD[count]._replace(inputs=_WINOGRAD[count].inputs[:, 1:-1])
       for count in (4, 5, 6)},
}
# Of the arithmetic of taps that meet a pixel; the transforms take time, too.
_MAX_CHAINED = 0.55
# With fewer results for each input, the transforms take what the products save.
_MIN_CHAINED_CHANNELS = 256


def _along_both(table: Mapping[int, Transforms], counts: tuple[int, int],
                weight: Tensor) -> TileTransforms:
    """Return the transforms of a weight (out, in, 3, 3), in its type."""
    inputs, kernel, outputs = zip(*(table[count] for count in counts), strict=True)
    return TileTransforms(tuple(matrix.to(weight.dtype) for matrix in inputs),
                          _transformed(torch.kron(*kernel), weight),
                          tuple(matrix.to(weight.dtype) for matrix in outputs))


def _apply(matrices: tuple[Tensor, Tensor], tiles: Tensor) -> Tensor:
    """Return the product along rows and columns, (rows, columns, ...), of tiles' pixels."""
    down, right = matrices
    y = down @ tiles.reshape(down.shape[1], -1)
    return right @ y.view(len(down), right.shape[1], -1)


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

    Chains of n = 4 to 6 such pixels take n + 2 products, not 3 n - 2: those of Winograd's F(n, 3),
    as nothing follows either end. Chains of three take 4, not 7: with pixels, taps in reverse and
    what the results are multiplied with in reverse as its arguments, their convolution is a
    symmetric trilinear form, and so a sum of as many cubes as its cubic form is:

        6 x y z + y**3 = ((x + v y + z)**3 + (-x + v y - z)**3) / 4 v
                       - ((x + w y - z)**3 + (-x + w y + z)**3) / 4 w,  v = 3 / 2, w = 1 / 2

    Their weights, along both axes, take up to 64/9 the memory, of 3 x 4 pixels 24/9.
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

    def by_chains(self, counts: tuple[int, int]) -> TileTransforms:
        """Return what turns chains of `counts` (rows, columns) of pixels into their results."""
        return _along_both(_CHAINS, counts, self.weight)


class TiledConvolution(Convolution):
    """
    A 3x3 convolution that keeps the size, and that a runtime may compute in tiles.

    Lavin and Gray, 'Fast Algorithms for Convolutional Neural Networks', CVPR 2016, section 4:
    F(6x6, 3x3) has tiles of 8x8 inputs, overlapping by two, for 6x6 outputs: 1.78 multiplications
    for each pixel instead of 9. Smaller ones have up to 2.78, fit other maps better, and need
    fewer weights. With a dilation d the map falls into d*d independent maps.
    """

    min_channels = 64
    """With fewer there is too little to multiply for the transforms to pay."""

    def tile(self, height: int, width: int) -> tuple[int, int]:
        """Return of how many rows and columns of results a tile is best for such a map."""
        return min(itertools.product(_WINOGRAD, repeat=2), key=lambda tile: (
            math.prod(side + 2 for side in tile)
            * (_PIXELS_FOR_WEIGHTS + self.dilation ** 2 * math.prod(
                -(-length // (side * self.dilation))
                for length, side in zip((height, width), tile, strict=True)))))

    def by_tiles(self, tile: tuple[int, int]) -> TileTransforms:
        """Return what turns the inputs of a tile into its results."""
        return _along_both(_WINOGRAD, tile, self.weight)


class WinogradConvolution(Convolution):
    """
    A TiledConvolution in PyTorch, whose weights are kept as they are multiplied.

    Tiles are of 3x4 results, of a dilated one 3x3, with 2.5 and 2.78 multiplications for a pixel.
    All steps are matrix products. `tile` is (rows, columns) of outputs.
    """

    min_channels = 128

    def _keep(self, weight: Tensor) -> None:
        self.tile = (3, 4) if self.dilation <= _MAX_WIDE_DILATION else (3, 3)
        self.inputs, kernel, self.outputs = _along_both(_WINOGRAD, self.tile, weight)
        # One matrix for each of the 30 or 25 products: (products, out, in, 1), so that the format
        # in memory says, as for any convolution's weight, whether results are last.
        self.register_buffer('weight', kernel.contiguous(memory_format=torch.channels_last))

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
        transformed = _apply(self.inputs, tiles)
        products = torch.bmm(transformed.view(len(self.weight), -1, channels),
                             self.weight.squeeze(3).mT)
        y = _apply(self.outputs, products)
        y = y.view(down, right, count, rows, d, columns, d, -1).permute(2, 3, 0, 4, 5, 1, 6, 7)
        y = y.reshape(count, down * d * rows, right * d * columns, -1)
        y = y[:, :height, :width].add_(self.bias).permute(0, 3, 1, 2)
        return self.activation(y if addend is None else y.add_(addend))

    def tiles(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of tiles that cover each of the independent maps."""
        down, right = (side * self.dilation for side in self.tile)
        return -(-height // down), -(-width // right)


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


def cpu_convolution(weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0,
                    dilation: int = 1, activation: str | None = None,
                    tiled: type[Convolution] = WinogradConvolution) -> nn.Module:
    """Return the convolution that is fastest in float32 on a CPU; `tiled` is that of tiles."""
    factory: Factory = Convolution
    if stride == 1 and weight.shape[2:] == (3, 3) and padding == dilation:
        if dilation > _MAX_NEAR_DILATION:
            factory = AtrousConvolution
        elif bias is not None and min(weight.shape[:2]) >= tiled.min_channels:
            factory = tiled
    return factory(weight, bias, stride, padding, dilation, activation)


def tiled_convolution(weight: Tensor, bias: Tensor | None, *arguments, **options) -> nn.Module:
    """Return the convolution of which a runtime chooses what is fastest for a size of map."""
    return cpu_convolution(weight, bias, *arguments, **options, tiled=TiledConvolution)


def split_convolution(weight: Tensor, bias: Tensor | None, *arguments, **options) -> nn.Module:
    """Return the convolution that is fastest where bfloat16 products are eight times as fast."""
    enough = min(weight.shape[:2]) >= _MIN_SPLIT_CHANNELS
    return (SplitConvolution if enough else Convolution)(weight, bias, *arguments, **options)
