# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The optimised network and its post-processing as an OpenVINO model.

It is written in OpenVINO's operations, module by module, and shares the weights' memory: nothing
is traced or converted, so that building takes no longer than the runtime's own compilation.
"""

from collections.abc import Sequence
import functools

import numpy as np
import openvino
from openvino import Node, opset1, Output
from openvino import opset13 as ops
import torch
from torch import nn

from mtan_perception.geometry import NORMAL_SIGNS
from mtan_perception.inference.backends.openvino_convolution import (
    channels_last,
    convolve,
    quantized_zero,
)
from mtan_perception.inference.backends.openvino_runtime import integers, number
from mtan_perception.inference.convolution import SplitConvolution
from mtan_perception.inference.images import MIN_NORM
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.inference.postprocess import upsample
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION


def build_model(network: OptimizedMTAN, size: tuple[int, int], tasks: tuple[str, ...],
                axes: str, is_exact: bool) -> openvino.Model:
    """
    Return a model from (1, 3, *size) to what mtan_perception.inference.postprocess.finish gives.

    :param network: on the CPU, in float32. The model uses its memory: keep it alive.
    :param is_exact: whether its products will be computed in float32, and not in bfloat16.
    """
    image = ops.parameter((1, 3, *size), np.float32, name='image')
    x = image
    if any(isinstance(module, SplitConvolution) for module in network.modules()):
        x = ops.add(x, quantized_zero())
    features = _maxpool(convolve(network.stem, x), network.maxpool)
    attended: list[Node | None] = [None] * len(tasks)
    for stage, (body, end) in enumerate(zip(network.bodies, network.ends, strict=True)):
        for block in body:
            features = _block(block, features)
        u, features = features, _block(end, features)
        masks = [network.masks[stage][name] for name in tasks]
        if stage > 0:
            attended = [_encode(network.encoders[stage - 1], part) for part in attended]
        hidden = _together([_hidden(*parts, u) for parts in zip(masks, attended, strict=True)])
        # The trunk's features last, as OpenVINO computes operands in their order: they can wait.
        attended = [ops.multiply(convolve(mask.out, part), features)
                    for mask, part in zip(masks, hidden, strict=True)]
    outputs = {}
    for name, part in zip(tasks, attended, strict=True):
        logits = _head(network.heads[name], part)
        outputs |= _finish(name, _upsample(logits, size, is_exact), axes)
    results = []
    for name, output in outputs.items():
        output.output(0).set_names({name})
        results.append(ops.result(output))
    return openvino.Model(results, [image], 'mtan')


def _maxpool(x: Node, pool: nn.MaxPool2d) -> Node:
    kernel, stride, padding = ([value] * 2 for value in
                               (pool.kernel_size, pool.stride, pool.padding))
    return opset1.max_pool(x, stride, padding, padding, kernel,
                           'ceil' if pool.ceil_mode else 'floor')


def _block(block: nn.Module, x: Node) -> Node:
    y = x
    for module in block.first:
        y = convolve(module, y)
    shortcut = x if isinstance(block.shortcut, nn.Identity) else convolve(block.shortcut, x)
    return convolve(block.last, y, shortcut)


def _encode(encoder: nn.Sequential, attended: Node) -> Node:
    block, pool = encoder
    y = _block(block, attended)
    return y if isinstance(pool, nn.Identity) else _maxpool(y, pool)


def _hidden(mask: nn.Module, encoded: Node | None, u: Node) -> Node:
    hidden = convolve(mask.shared, u)
    return ops.relu(hidden) if encoded is None else convolve(mask.encoded, encoded, hidden)


def _together(tasks: list[Node]) -> Sequence[Node | Output]:
    """
    Return the tasks' maps, none of which is used before all are there.

    So OpenVINO goes from stage to stage and not from task to task, and what they are made of need
    not be kept: 30 MiB of features. The copies are small.
    """
    if len(tasks) == 1:
        return tasks
    return ops.split(ops.concat(tasks, 0), ops.constant(np.int64(0)), len(tasks)).outputs()


def _head(head: nn.Module, x: Node) -> Node:
    y = None
    for branch, projection in zip(head.branches, head.projections, strict=True):
        y = convolve(projection, convolve(branch, x), y)
    pooled = convolve(head.pooled, convolve(head.pooling, ops.reduce_mean(
        x, integers(2, 3), True)))
    return convolve(head.out, convolve(head.convolution, ops.relu(ops.add(pooled, y))))


def _upsample(logits: Node, size: tuple[int, int], is_exact: bool) -> list[Output]:
    """Return the channels of the logits at `size`, (1, 1, *size) each."""
    before = tuple(logits.output(0).get_shape())[1:]
    if is_exact:
        rows, columns = map(_interpolation, before[1:], size)
        y = ops.matmul(ops.constant(rows), ops.matmul(
            logits, ops.constant(columns), False, True), False, False)
    else:  # weights of 8 bits do not add up to 1
        y = ops.interpolate(logits, integers(*size), 'linear_onnx', 'sizes',
                            coordinate_transformation_mode='align_corners', axes=integers(2, 3))
    return ops.split(y, ops.constant(np.int64(1)), before[0]).outputs()


def _interpolation(before: int, after: int) -> np.ndarray:
    """Return what `upsample` multiplies the values along an axis with, (after, before)."""
    return upsample(torch.eye(before, dtype=torch.float64)[None, None],
                    (after, before))[0, 0].float().numpy()


def _finish(task: str, channels: Sequence[Output], axes: str) -> dict[str, Node]:
    """
    Return the task's images by the names that finish gives them.

    Channel by channel, as OpenVINO makes one loop over the pixels of what it is told like that.
    """
    if task == SEGMENTATION:
        label, probability = _classify(channels)
        return {'label': ops.convert(ops.squeeze(label, integers(1)), 'u8'),
                'probability': ops.squeeze(probability, integers(1))}
    if task == DEPTH:
        return {'depth': ops.squeeze(channels[0], integers(1))}
    if task == NORMAL:
        return {'normal': channels_last(ops.concat(_point_normals(channels, axes), 1))}
    raise ValueError(f'tasks: {task!r} has no images')


def _classify(logits: Sequence[Output]) -> tuple[Node, Node]:
    """Return the first of the most probable classes, as float32, and its probability."""
    # A map of zeros: with one class there is no more to it.
    best, label = logits[0], ops.clamp(logits[0], 0, 0)
    for index, logit in enumerate(logits[1:], 1):
        label = ops.select(ops.greater(logit, best), number(index), label)
        best = ops.maximum(best, logit)
    exponentials = [ops.exp(ops.subtract(logit, best)) for logit in logits]
    # OpenVINO's exponential of what is not a number is one. Times 0 it stays what it is.
    nothing = ops.multiply(functools.reduce(ops.add, logits), number(0))
    return label, ops.divide(number(1), functools.reduce(ops.add, exponentials, nothing))


def _point_normals(planes: Sequence[Output], axes: str) -> list[Node]:
    planes = [ops.multiply(plane, number(sign))
              for plane, sign in zip(planes, NORMAL_SIGNS[axes], strict=True)]
    length = ops.sqrt(functools.reduce(ops.add, [ops.multiply(plane, plane) for plane in planes]))
    pointing = ops.logical_and(ops.greater(length, number(MIN_NORM)),
                               ops.less(length, number(np.inf)))
    return [ops.select(pointing, ops.divide(plane, length), number(toward))
            for plane, toward in zip(planes, (0, 0, -1), strict=True)]
