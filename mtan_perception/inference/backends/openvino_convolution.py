# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The convolutions of mtan_perception.inference.convolution in OpenVINO's operations.

Maps have their channels last in memory, whatever the order of their dimensions. A transpose to or
from that order costs nothing as long as it stands at the border of what is computed.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import math

import numpy as np
import openvino
from openvino import Node, Output
from openvino import opset13 as ops
import torch
from torch import nn, Tensor

from mtan_perception.inference.backends.openvino_runtime import integers, number
from mtan_perception.inference.convolution import (
    AtrousConvolution,
    Convolution,
    SplitConvolution,
    TiledConvolution,
    TileTransforms,
)
from mtan_perception.inference.mapped_files import mapped_copy

# Up to so many bytes a constant is copied: read at every frame, each would keep some pages of the
# mapped file around it in memory.
_SMALL = 1 << 16
# A multiplication by 1 would be left out, and one by 2 moved past the next ReLU, which then has
# to give two results.
_SCALE = -2
# Tiles of so many pixels are transformed by one matrix; along rows, then columns, it is less
# arithmetic, but goes twice through memory.
_MAX_AT_ONCE = 30


def _constant(value: Tensor | np.ndarray, is_mapped: bool = True) -> Node:
    """
    Return a constant that uses the value's memory or, where that is not a mapped file's, a copy's.

    :param is_mapped: whether the value is of the network, not one made of its weights.
    """
    array = value.numpy() if isinstance(value, Tensor) else value
    if array.nbytes <= _SMALL:
        return ops.constant(array)
    is_mapped = is_mapped and array.flags.c_contiguous
    return ops.constant(array if is_mapped else mapped_copy(array), shared_memory=True)


def _shape(x: Node | Output) -> list[int]:
    return list((x.output(0) if isinstance(x, Node) else x).get_shape())


def _activate(y: Node, activation) -> Node:
    if activation is torch.relu_:
        return ops.relu(y)
    return ops.sigmoid(y) if activation is torch.sigmoid_ else y


def convolve(module: nn.Module, x: Node, addend: Node | None = None) -> Node:
    """Return activation(weight * x + bias + addend), (1, out, H, W), for (1, in, H, W)."""
    if isinstance(module, TiledConvolution):
        return _winograd(module, x, addend)
    if isinstance(module, SplitConvolution):
        y = _by_taps(module, x) if module.taps_are_far else _by_parts(module, x)
    elif isinstance(module, AtrousConvolution):
        y = _atrous(module, x)
    else:
        y = _directly(module, x)
    if module.bias is not None:
        y = ops.add(y, _constant(module.bias.view(1, -1, 1, 1)))
    return _activate(y if addend is None else ops.add(y, addend), module.activation)


def _directly(module: Convolution, x: Node) -> Node:
    """Return weight * x."""
    weight, pads = module.taps(*_shape(x)[2:])
    return ops.convolution(x, _constant(weight), [module.stride] * 2, pads, pads,
                           [module.dilation] * 2)


def _atrous(module: AtrousConvolution, x: Node) -> Node:
    """Return weight * x by the fewest products that its map allows."""
    size = _shape(x)[2:]
    if module.comes_in_pairs(*size):
        return _by_pairs(module, x)
    if counts := module.chains(*size):
        return _by_chains(module, x, counts)
    return (_by_thirds if module.comes_in_thirds(size[0]) else _directly)(module, x)


def _by_parts(module: SplitConvolution, x: Node) -> Node:
    """Return weight * x by the products of SplitConvolution."""
    if module.is_side_by_side:
        return _product(_side_by_side(x), _bfloat16(module.parts), module)
    return _sum_of_products(_parts(x), module.parts, module)


def _by_taps(module: SplitConvolution, x: Node) -> Node:
    """Return weight * x as the sum of its taps, each a product over the pixels it meets."""
    height, width = _shape(x)[2:]
    parts = [_rows(part) for part in _parts(x)]
    kernel = range(module.parts.shape[1]), range(module.parts.shape[2])
    y = None
    for row, column in itertools.product(*kernel):
        down, right = ((tap - 1) * module.dilation for tap in (row, column))
        if abs(down) >= height or abs(right) >= width:
            continue
        met = [_map(_shifted(_shifted(part, 0, down, height), 1, right, width),
                    width - abs(right)) for part in parts]
        weights = module.parts[:, row, column, :, :, None, None]
        product = _sum_of_products(met, weights, module, padding=0)
        if down or right:
            product = ops.pad(product, integers(0, 0, max(-down, 0), max(-right, 0)),
                              integers(0, 0, max(down, 0), max(right, 0)), 'constant')
        y = product if y is None else ops.add(y, product)
    return y


def _rows(x: Node) -> Node:
    """
    Return (H, W * channels), a row of the map each, for (1, channels, H, W).

    Whatever is cut out of this or multiplied OpenVINO does not copy into another layout.
    """
    return ops.reshape(channels_last(x), integers(_shape(x)[2], -1), False)


def _map(rows: Node, width: int) -> Node:
    """Return (1, channels, H, W) for (H, W * channels)."""
    return _channels_first(ops.reshape(
        rows, integers(1, _shape(rows)[0], width, _shape(rows)[1] // width), False))


def _shifted(pixels: Node, axis: int, shift: int, length: int) -> Node:
    """Return, of `length` pixels along an axis, those that are `shift` further than another."""
    if shift == 0:
        return pixels
    unit = _shape(pixels)[axis] // length
    start, stop = max(shift, 0) * unit, (length + min(shift, 0)) * unit
    return ops.slice(pixels, integers(start), integers(stop), integers(1), integers(axis))


def _parts(x: Node) -> tuple[Node, Node]:
    """Return x1 and x2 of SplitConvolution for x / _SCALE."""
    x = ops.multiply(x, number(1 / _SCALE))
    high = ops.convert(x, 'bf16')
    return high, ops.convert(ops.subtract(x, ops.convert(high, 'f32')), 'bf16')


def _side_by_side(x: Node) -> Node:
    """Return x1, x1 and x2 of SplitConvolution for x / _SCALE, one beside the other."""
    count, channels, height, width = _shape(x)
    pixels = ops.multiply(ops.reshape(
        channels_last(x), integers(count, height * width, 1, channels), False), number(1 / _SCALE))
    taken = ops.constant(np.array([0, 0, 1], np.float32).reshape(1, 1, 3, 1))
    high = ops.convert(ops.convert(pixels, 'bf16'), 'f32')
    parts = ops.convert(ops.subtract(pixels, ops.multiply(high, taken)), 'bf16')
    return _channels_first(ops.reshape(parts, integers(count, height, width, -1), False))


def _sum_of_products(x: Sequence[Node], parts: Tensor, module: SplitConvolution,
                     padding: int | None = None) -> Node:
    """Return w1 x1 + w1 x2 + w2 x1."""
    high, low = (_bfloat16(part) for part in parts)
    # The smallest first, as each sum rounds.
    terms = (x[1], high), (x[0], low), (x[0], high)
    return functools.reduce(ops.add, (_product(*term, module, padding) for term in terms))


def _product(x: Node, weight: Node, module: SplitConvolution, padding: int | None = None) -> Node:
    """Return _SCALE * weight * x, of bfloat16, in float32."""
    padding = [module.padding if padding is None else padding] * 2
    y = ops.convolution(x, weight, [module.stride] * 2, padding, padding, [module.dilation] * 2)
    # By its specification a convolution of bfloat16 gives bfloat16. But in a quantised network,
    # which has a FakeQuantize somewhere, OpenVINO takes a conversion and a multiplication for the
    # end of the convolution, which then keeps its sums.
    return ops.multiply(ops.convert(y, 'f32'), number(_SCALE))


def quantized_zero() -> Node:
    """Return a zero with which, added anywhere, a model can have SplitConvolutions."""
    zero, one = number(0), number(1)
    return ops.fake_quantize(zero, zero, one, zero, one, 256)


def _bfloat16(value: Tensor) -> Node:
    """Return a constant that uses the value's memory."""
    array = value.view(torch.int16).numpy().view(np.uint16)  # numpy has no bfloat16
    return openvino.op.Constant(
        openvino.Tensor(array, list(value.shape), openvino.Type.bf16), shared_memory=True)


def channels_last(x: Node) -> Node:
    """Return (N, H, W, C) for (N, C, H, W)."""
    return ops.transpose(x, integers(0, 2, 3, 1))


def _channels_first(x: Node) -> Node:
    return ops.transpose(x, integers(0, 3, 1, 2))


def _by_pairs(module: AtrousConvolution, x: Node) -> Node:
    """Return weight * x by the products of AtrousConvolution."""
    _, channels, height, width = _shape(x)

    def multiply(x: Node | Output, weight: Node) -> Node:
        # A convolution, though it is a matrix product: as such OpenVINO is slower by a fifth.
        pixels = _map(x, _shape(x)[1] // channels)
        return _rows(ops.convolution(pixels, weight, [1, 1], [0, 0], [0, 0], [1, 1]))

    def along_rows(x: Node | Output, weights: list[Node]) -> Node:
        return _pair_up(x, 1, width, module.dilation, weights, multiply)

    # Not by module.by_chains: all nine matrices at once raise a process's peak by 20 MiB.
    y = _pair_up(_rows(x), 0, height, module.dilation, [
        [_constant(matrix[..., None, None], is_mapped=False) for matrix in _factors(taps)]
        for taps in _factors(module.weight.permute(2, 3, 0, 1).numpy())], along_rows)
    return _map(y, width)


def _factors(taps: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return b, c - b and a - b of the taps a, b, c."""
    before, centre, after = taps
    return centre, after - centre, before - centre


def _pair_up(x: Node | Output, axis: int, length: int, dilation: int, factors: Sequence,
             multiply: Callable) -> Node:
    """
    Return the sums of AtrousConvolution along an axis.

    :param length: pixels along the axis.
    :param factors: b, c - b and a - b.
    :param multiply: (x, factor) -> the product.
    """
    pairs, single = length - dilation, 2 * dilation - length
    unit = _shape(x)[axis] // length
    cuts = [pairs, single, pairs] if single else [pairs, pairs]
    first, *middle, second = ops.variadic_split(
        x, integers(axis), integers(*(unit * cut for cut in cuts))).outputs()
    centre, second_more, first_more = factors
    shared = multiply(ops.add(first, second), centre)
    return ops.concat([ops.add(shared, multiply(second, second_more)),
                       *(multiply(part, centre) for part in middle),
                       ops.add(shared, multiply(first, first_more))], axis)


def _by_chains(module: AtrousConvolution, x: Node, counts: tuple[int, int]) -> Node:
    """Return weight * x by the products of AtrousConvolution: each chain is a tile."""
    return _channels_first(_by_tiles(
        x, _mapped(module.by_chains(counts)), module.dilation, counts, 0))


def _by_thirds(module: AtrousConvolution, x: Node) -> Node:
    """Return weight * x by the products of AtrousConvolution for three rows."""
    d, (height, width) = module.dilation, _shape(x)[2:]
    beside = module.taps(height, width)[1][1]
    others, centre = (_constant(part, is_mapped=False) for part in module.by_thirds(width))

    def half(band: Node | Output) -> Node:
        return ops.multiply(band, number(1 / 2))

    first, second, third = _bands(x, 3)
    sums = _map(ops.concat([ops.add(first, half(second)), ops.add(second, third)], 0), width)
    s, t = _bands(ops.convolution(sums, centre, [1, 1], [0, beside], [0, beside], [1, d]), 2)
    shared = _map(ops.concat([s, ops.add(s, half(t)), t], 0), width)
    return ops.add(shared, ops.convolution(
        x, others, [1, 1], [d, beside], [d, beside], [2 * d, d]))


def _bands(x: Node, count: int) -> list[Output]:
    """Return so many bands of the map's rows, as `_rows` gives them."""
    return ops.split(_rows(x), ops.constant(np.int64(0)), count).outputs()


def _winograd(module: TiledConvolution, x: Node, addend: Node | None) -> Node:
    """
    Return activation(weight * x + bias + addend) by the tiles of TiledConvolution.

    What is added to a map of the network comes after the transpose from channels last: so OpenVINO
    copies neither map. Where nothing is added, bias and activation follow the last product, whose
    end they become.
    """
    bias, tile = _constant(module.bias), module.tile(*_shape(x)[2:])
    by_tiles = functools.partial(_by_tiles, x, _tiles_of(module, tile), module.dilation, tile, 1)
    if addend is None:
        return _channels_first(by_tiles(
            finish=lambda y: _activate(ops.add(y, bias), module.activation)))
    y = _channels_first(ops.add(by_tiles(), bias))
    return _activate(ops.add(y, addend), module.activation)


@functools.lru_cache(maxsize=2)
def _tiles_of(module: TiledConvolution, tile: tuple[int, int]) -> TileTransforms:
    """Return module.by_tiles(tile), once for the tasks' encoders, whose weights are shared."""
    return _mapped(module.by_tiles(tile))


def _mapped(transforms: TileTransforms) -> TileTransforms:
    return transforms._replace(kernel=torch.from_numpy(mapped_copy(transforms.kernel.numpy())))


def _by_tiles(x: Node, transforms: TileTransforms, dilation: int, tile: tuple[int, int],
              margin: int, finish: Callable[[Node], Node] = lambda y: y) -> Node:
    """
    Return the map (1, H, W, out) that tiles of a map (1, in, H, W) give.

    :param tile: rows and columns of its results.
    :param margin: rows and columns around them that its inputs have too, on each side.
    :param finish: is applied to the results, in three dimensions with the channels last.
    """
    inputs, kernel, outputs = transforms
    products, out, channels, _ = kernel.shape
    into, out_of = _tile_places(*_shape(x)[2:], dilation, tile, margin)
    # Whole pixels are gathered at once, each a row of its channels.
    y = ops.gather(ops.reshape(channels_last(x), integers(-1, channels), False), into, integers(0))
    y = _transform(inputs, y)
    y = ops.matmul(ops.reshape(y, integers(products, -1, channels), False),
                   _constant(kernel[..., 0]), False, True)
    y = _transform(outputs, y)
    y = finish(ops.reshape(y, integers(math.prod(tile), -1, out), False))
    return ops.gather(ops.reshape(y, integers(-1, out), False), out_of, integers(0))


def _transform(matrices: tuple[Tensor, Tensor], y: Node) -> Node:
    """Return the product along rows and columns, (rows, columns, ...), of tiles' pixels."""
    down, right = matrices
    count = down.shape[1] * right.shape[1]
    if count <= _MAX_AT_ONCE:
        return ops.matmul(_constant(torch.kron(down, right)),
                          ops.reshape(y, integers(count, -1), False), False, False)
    y = ops.matmul(_constant(down), ops.reshape(y, integers(down.shape[1], -1), False),
                   False, False)
    return ops.matmul(_constant(right), ops.reshape(
        y, integers(len(down), right.shape[1], -1), False), False, False)


def _tiled(length: int, dilation: int, side: int) -> int:
    """Return the pixels along an axis that whole tiles cover."""
    return -(-length // (side * dilation)) * side * dilation


@functools.lru_cache(maxsize=32)
def _tile_places(height: int, width: int, d: int, tile: tuple[int, int],
                 margin: int) -> tuple[Node, Node]:
    """
    Return which pixels the tiles are gathered from, and which of their results the map is.

    The pixels of all tiles that have the same place in theirs follow one another.
    """
    down, right = tile
    whole = _tiled(height, d, down), _tiled(width, d, right)
    rows, columns = whole[0] // (down * d), whole[1] // (right * d)
    # Of what lies beyond the last pixel OpenVINO gathers zeros.
    place = torch.full([length + 2 * margin * d for length in whole], height * width,
                       dtype=torch.int32)
    place[margin * d:, margin * d:][:height, :width] = torch.arange(
        height * width, dtype=torch.int32).view(height, width)
    padded_width = place.shape[1]
    # The inputs of each, pixels a dilation apart.
    into = place.as_strided(
        (rows, d, columns, d, down + 2 * margin, right + 2 * margin),
        (down * d * padded_width, padded_width, right * d, 1, d * padded_width, d))
    # Where output (i, j) of each tile belongs: its pixel's place in y.
    place = torch.arange(math.prod(whole), dtype=torch.int32)
    into = into.permute(4, 5, 0, 1, 2, 3)
    out_of = place.view(down, right, rows, d, columns, d).permute(2, 0, 3, 4, 1, 5)
    out_of = out_of.reshape(1, *whole)[:, :height, :width]
    return ops.constant(into.flatten().numpy()), ops.constant(out_of.contiguous().numpy())
