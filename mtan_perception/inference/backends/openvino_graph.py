# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The optimised network and its post-processing as an OpenVINO model.

It is written in OpenVINO's operations, module by module, and shares the weights' memory: nothing
is traced or converted, so that building takes no longer than the runtime's own compilation.
"""

from collections.abc import Sequence

import numpy as np
import openvino
from openvino import Node, opset1, Output
from openvino import opset13 as ops
from torch import nn

from mtan_perception.geometry import NORMAL_SIGNS
from mtan_perception.inference.backends.openvino_convolution import (
    channels_last,
    convolve,
    integers,
    number,
    quantized_zero,
)
from mtan_perception.inference.convolution import SplitConvolution
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.inference.postprocess import MIN_NORM
from mtan_perception.tasks import DEPTH, NORMAL, SEGMENTATION


def build_model(network: OptimizedMTAN, size: tuple[int, int], tasks: tuple[str, ...],
                axes: str) -> openvino.Model:
    """
    Return a model from (1, 3, *size) to what mtan_perception.inference.postprocess.finish gives.

    :param network: on the CPU, in float32. The model uses its memory: keep it alive.
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
        outputs |= _finish(name, _upsample(_head(network.heads[name], part), size), axes)
    results = []
    for name, output in outputs.items():
        output.output(0).set_names({name})
        results.append(ops.result(output))
    return openvino.Model(results, [image], 'mtan')


def rounds_products(compiled: openvino.CompiledModel) -> bool:
    """Tell whether the runtime rounds the sums of a convolution to less than float32."""
    operations = (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
    return any(info['layerType'].astype(str) == 'Convolution'
               and info['outputPrecisions'].astype(str) != 'f32' for info in operations)


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


def _upsample(logits: Node, size: tuple[int, int]) -> Node:
    return ops.interpolate(logits, integers(*size), 'linear_onnx', 'sizes',
                           coordinate_transformation_mode='align_corners', axes=integers(2, 3))


def _finish(task: str, y: Node, axes: str) -> dict[str, Node]:
    """Return the task's images by the names that finish gives them."""
    if task == SEGMENTATION:
        best, label = ops.topk(y, ops.constant(np.int32(1)), 1, 'max', 'none', 'i32').outputs()
        total = ops.reduce_sum(ops.exp(ops.subtract(y, best)), integers(1), False)
        return {'label': ops.convert(ops.squeeze(label, integers(1)), 'u8'),
                'probability': ops.divide(number(1), total)}
    if task == DEPTH:
        return {'depth': ops.squeeze(y, integers(1))}
    if task == NORMAL:
        signs = np.array(NORMAL_SIGNS[axes], np.float32)
        y = ops.multiply(channels_last(y), ops.constant(signs))
        length = ops.sqrt(ops.reduce_sum(ops.multiply(y, y), integers(3), True))
        pointing = ops.logical_and(ops.greater(length, number(MIN_NORM)),
                                   ops.less(length, number(np.inf)))
        backward = ops.constant(np.array([0, 0, -1], np.float32))
        return {'normal': ops.select(pointing, ops.divide(y, length), backward)}
    raise ValueError(f'tasks: {task!r} has no images')
