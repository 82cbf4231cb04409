# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The optimised network and its post-processing as an OpenVINO model.

It is written in OpenVINO's operations, module by module, and shares the weights' memory: nothing
is traced or converted, so that building takes no longer than the runtime's own compilation.
"""

from collections.abc import Callable, Sequence
import functools

import numpy as np
import openvino
from openvino import Node, opset1, Output
from openvino import opset13 as ops
import torch
from torch import nn, Tensor

from mtan_perception.geometry import NORMAL_SIGNS
from mtan_perception.inference.convolution import AtrousConvolution, WinogradConvolution
from mtan_perception.inference.mapped_weights import mapped_copy
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.inference.postprocess import MIN_NORM
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION

# Up to so many bytes a constant is copied: read at every frame, each would keep some pages of the
# mapped file around it in memory.
_SMALL = 1 << 16


def build_model(network: OptimizedMTAN, size: tuple[int, int], tasks: tuple[str, ...],
                axes: str) -> openvino.Model:
    """
    Return a model from (1, 3, *size) to what mtan_perception.inference.postprocess.finish gives.

    :param network: on the CPU, in float32. The model uses its memory: keep it alive.
    """
    x = ops.parameter((1, 3, *size), np.float32, name='image')
    features = _maxpool(_convolve(network.stem, x), network.maxpool)
    attended = None
    for stage, (body, end) in enumerate(zip(network.bodies, network.ends, strict=True)):
        for block in body:
            features = _block(block, features)
        u, features = features, _block(end, features)
        masks = [network.masks[stage][name] for name in tasks]
        if stage > 0:
            attended = _encode(network.encoders[stage - 1], attended)
        attended = [_attend(mask, u, features, None if attended is None else attended[index])
                    for index, mask in enumerate(masks)]
    outputs = {}
    for name, part in zip(tasks, attended, strict=True):
        outputs |= _finish(name, _upsample(_head(network.heads[name], part), size), axes)
    results = []
    for name, output in outputs.items():
        output.output(0).set_names({name})
        results.append(ops.result(output))
    return openvino.Model(results, [x], 'mtan')


def _constant(value: Tensor | np.ndarray) -> Node:
    array = value.numpy() if isinstance(value, Tensor) else value
    if array.nbytes <= _SMALL:
        return ops.constant(array)
    return ops.constant(array if array.flags.c_contiguous else mapped_copy(array),
                        shared_memory=True)


@functools.cache  # each has a few KiB of its own in the compiled model
def _integers(*values: int) -> Node:
    return ops.constant(np.array(values, np.int64))


def _shape(x: Node | Output) -> list[int]:
    return list((x.output(0) if isinstance(x, Node) else x).get_shape())


def _activate(y: Node, activation) -> Node:
    if activation is torch.relu_:
        return ops.relu(y)
    return ops.sigmoid(y) if activation is torch.sigmoid_ else y


def _convolve(module: nn.Module, x: Node, addend: Node | None = None) -> Node:
    if isinstance(module, WinogradConvolution):
        return _winograd(module, x, addend)
    size = _shape(x)[2:]
    if isinstance(module, AtrousConvolution) and module.comes_in_pairs(*size):
        y = _by_pairs(module, x)
    else:
        weight, pads = module.taps(*size)
        y = ops.convolution(x, _constant(weight), [module.stride] * 2, pads, pads,
                            [module.dilation] * 2)
    if module.bias is not None:
        y = ops.add(y, _constant(module.bias.view(1, -1, 1, 1)))
    return _activate(y if addend is None else ops.add(y, addend), module.activation)


def _by_pairs(module: AtrousConvolution, x: Node) -> Node:
    """Return weight * x by the products of AtrousConvolution."""
    _, channels, height, width = _shape(x)
    out = module.weight.shape[0]
    # Matrices of a row of the map each, (H, W * channels): other shapes OpenVINO would copy into
    # another layout for each product.
    pixels = ops.reshape(ops.transpose(x, _integers(0, 2, 3, 1)), _integers(height, -1), False)

    def multiply(x: Node | Output, matrix: Node) -> Node:
        y = ops.matmul(ops.reshape(x, _integers(-1, channels), False), matrix, False, False)
        return ops.reshape(y, _integers(_shape(x)[0], -1), False)

    def along_rows(x: Node | Output, matrices: list[Node]) -> Node:
        return _pair_up(x, 1, width, module.dilation, matrices, multiply)

    y = _pair_up(pixels, 0, height, module.dilation, [
        [_constant(matrix) for matrix in _factors(taps)]
        for taps in _factors(module.weight.permute(2, 3, 1, 0).numpy())], along_rows)
    return ops.transpose(ops.reshape(y, _integers(1, height, width, out), False),
                         _integers(0, 3, 1, 2))


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
        x, _integers(axis), _integers(*(unit * cut for cut in cuts))).outputs()
    centre, second_more, first_more = factors
    shared = multiply(ops.add(first, second), centre)
    return ops.concat([ops.add(shared, multiply(second, second_more)),
                       *(multiply(part, centre) for part in middle),
                       ops.add(shared, multiply(first, first_more))], axis)


def _winograd(module: WinogradConvolution, x: Node, addend: Node | None) -> Node:
    """
    Return activation(weight * x + bias + addend) by the steps of WinogradConvolution.

    Maps have their channels last in memory. A transpose to or from that order costs nothing as
    long as it stands at the border: padding comes before the one, all else before the other.
    """
    count, channels, height, width = _shape(x)
    d = module.dilation
    rows, columns = module.tiles(height, width)
    padded = ops.pad(x, _integers(0, 0, d, d), _integers(
        0, 0, (3 * rows + 1) * d - height, (3 * columns + 1) * d - width), 'constant')
    pixels = ops.transpose(padded, _integers(0, 2, 3, 1))
    into, out_of = _winograd_places(count, height, width, d, rows, columns)
    flat = ops.reshape(pixels, _integers(-1, channels), False)
    tiles = ops.gather(flat, into, _integers(0))
    tiles = ops.matmul(_constant(module.inputs),
                       ops.reshape(tiles, _integers(25, -1), False), False, False)
    products = ops.matmul(ops.reshape(tiles, _integers(25, -1, channels), False),
                          _constant(module.weight), False, False)
    y = ops.matmul(_constant(module.outputs),
                   ops.reshape(products, _integers(25, -1), False), False, False)
    out = module.weight.shape[2]
    y = ops.gather(ops.reshape(y, _integers(-1, out), False), out_of, _integers(0))
    y = ops.add(y, _constant(module.bias))
    if addend is not None:
        y = ops.add(y, ops.transpose(addend, _integers(0, 2, 3, 1)))
    return ops.transpose(_activate(y, module.activation), _integers(0, 3, 1, 2))


@functools.lru_cache(maxsize=32)
def _winograd_places(count: int, height: int, width: int, d: int, rows: int,
                     columns: int) -> tuple[Node, Node]:
    """Return which pixels the tiles are gathered from, and which of their results the map is."""
    # Whole pixels are gathered at once, each a row of its channels: the inputs (5, 5, tiles).
    padded_width = (3 * columns + 2) * d
    place = torch.arange(count * (3 * rows + 2) * d * padded_width, dtype=torch.int32)
    image, row, column = place.view(count, (3 * rows + 2) * d, padded_width).stride()
    into = place.as_strided(
        (5, 5, count, rows, d, columns, d),
        (d * row, d * column, image, 3 * d * row, row, 3 * d * column, column))
    # Where output (i, j) of each tile belongs: its pixel's place in y.
    place = torch.arange(9 * count * rows * d * columns * d, dtype=torch.int32)
    place = place.view(3, 3, count, rows, d, columns, d).permute(2, 3, 0, 4, 5, 1, 6)
    place = place.reshape(count, 3 * d * rows, 3 * d * columns)[:, :height, :width]
    return ops.constant(into.reshape(-1).numpy()), ops.constant(place.contiguous().numpy())


def _maxpool(x: Node, pool: nn.MaxPool2d) -> Node:
    kernel, stride, padding = ([value] * 2 for value in
                               (pool.kernel_size, pool.stride, pool.padding))
    return opset1.max_pool(x, stride, padding, padding, kernel,
                           'ceil' if pool.ceil_mode else 'floor')


def _block(block: nn.Module, x: Node) -> Node:
    y = x
    for module in block.first:
        y = _convolve(module, y)
    shortcut = x if isinstance(block.shortcut, nn.Identity) else _convolve(block.shortcut, x)
    return _convolve(block.last, y, shortcut)


def _encode(encoder: nn.Sequential, attended: list[Node]) -> list[Node]:
    block, pool = encoder
    results = []
    for x in attended:
        y = _block(block, x)
        results.append(y if isinstance(pool, nn.Identity) else _maxpool(y, pool))
    return results


def _attend(mask: nn.Module, u: Node, p: Node, encoded: Node | None) -> Node:
    hidden = ops.add(ops.convolution(u, _constant(mask.weight), [1, 1], [0, 0], [0, 0], [1, 1]),
                     _constant(mask.bias.view(1, -1, 1, 1)))
    hidden = ops.relu(hidden) if encoded is None else _convolve(mask.encoded, encoded, hidden)
    # p first: OpenVINO then runs the trunk before the tasks, and needs a little less memory.
    return ops.multiply(p, _convolve(mask.out, hidden))


def _head(head: nn.Module, x: Node) -> Node:
    y = None
    for branch, projection in zip(head.branches, head.projections, strict=True):
        y = _convolve(projection, _convolve(branch, x), y)
    pooled = _convolve(head.pooled, _convolve(head.pooling, ops.reduce_mean(
        x, _integers(2, 3), True)))
    return _convolve(head.out, _convolve(head.convolution, ops.relu(ops.add(y, pooled))))


def _upsample(logits: Node, size: tuple[int, int]) -> Node:
    return ops.interpolate(logits, _integers(*size), 'linear_onnx', 'sizes',
                           coordinate_transformation_mode='align_corners', axes=_integers(2, 3))


def _finish(task: str, y: Node, axes: str) -> dict[str, Node]:
    """Return the task's images by the names that finish gives them."""
    one = ops.constant(np.float32(1))
    if task == SEGMENTATION:
        best, label = ops.topk(y, ops.constant(np.int32(1)), 1, 'max', 'none', 'i32').outputs()
        total = ops.reduce_sum(ops.exp(ops.subtract(y, best)), _integers(1), False)
        return {'label': ops.convert(ops.squeeze(label, _integers(1)), 'u8'),
                'probability': ops.divide(one, total)}
    if task == DEPTH:
        return {'depth': ops.squeeze(y, _integers(1))}
    if task == NORMAL:
        signs = np.array(NORMAL_SIGNS[axes], np.float32)
        y = ops.multiply(ops.transpose(y, _integers(0, 2, 3, 1)), ops.constant(signs))
        length = ops.sqrt(ops.reduce_sum(ops.multiply(y, y), _integers(3), True))
        pointing = ops.logical_and(ops.greater(length, ops.constant(np.float32(MIN_NORM))),
                                   ops.less(length, ops.constant(np.float32(np.inf))))
        backward = ops.constant(np.array([0, 0, -1], np.float32))
        return {'normal': ops.select(pointing, ops.divide(y, length), backward)}
    raise ValueError(f'tasks: {task!r} has no images')
