# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What all that is run by OpenVINO has in common: its core, files, and small constants."""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import Node
from openvino import opset13 as ops

from mtan_perception.inference.errors import BackendError, in_one_line
from mtan_perception.inference.mapped_files import map_file
from mtan_perception.threads import compute_threads

PRECISIONS = {'fp32': 'f32', 'bf16': 'bf16'}
"""Ours -> OpenVINO's, of those that it computes in on a CPU."""


@functools.cache
def openvino_core() -> openvino.Core:
    """
    Return the process's only openvino.Core, which is never deleted.

    Each Core sets a signal stack for its thread (processors with AMX need a larger one). One that
    is deleted before a later one leaves the thread with a stack in freed memory, and the next
    signal, Ctrl-C or the end of a child, ends the process.
    """
    return openvino.Core()


def compile_model(model: openvino.Model, precision: str = 'fp32') -> openvino.CompiledModel:
    """
    Compile for the CPU, one frame at a time.

    :raises BackendError: with OpenVINO's reason.
    """
    try:
        # The default precision would be whatever the processor is fastest in.
        return openvino_core().compile_model(model, 'CPU', {
            'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': PRECISIONS[precision],
            'INFERENCE_NUM_THREADS': compute_threads()})
    except RuntimeError as error:
        raise BackendError(f'openvino cannot build the network: {in_one_line(error)}') from error


def infer(request: openvino.InferRequest, x: np.ndarray) -> Any:
    """
    Return the results for one input, by name or index: arrays of their own.

    :raises BackendError: with OpenVINO's reason.
    """
    try:
        return request.infer({0: x}, share_inputs=True)
    except RuntimeError as error:
        raise BackendError(f'openvino failed: {in_one_line(error)}') from error


def save_model(model: openvino.Model, path: Path) -> None:
    """
    Write OpenVINO's two files, `path` (.xml) and beside it its weights (.bin), in float32.

    :raises OSError: if they cannot be written.
    """
    try:
        openvino.save_model(model, os.fspath(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(f'{path}: openvino cannot write it, for want of space perhaps: '
                      f'{in_one_line(error)}') from error


def read_model(path: Path) -> tuple[openvino.Model, np.ndarray]:
    """
    Return what `save_model` wrote, and its mapped weights: keep them while it is used.

    :raises OSError: if they are not there.
    :raises BackendError: with OpenVINO's reason.
    """
    with open(path.with_suffix('.bin'), 'rb') as file:
        weights = map_file(file, np.uint8)
    try:
        return openvino_core().read_model(
            path.read_bytes(), openvino.Tensor(weights, weights.shape, openvino.Type.u8)), weights
    except RuntimeError as error:
        raise BackendError(f'openvino cannot read {path}: {in_one_line(error)}') from error


def rounds_products(compiled: openvino.CompiledModel) -> bool:
    """Tell whether the runtime rounds the sums of a convolution to less than float32."""
    operations = (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
    return any(info['layerType'].astype(str) == 'Convolution'
               and info['outputPrecisions'].astype(str) != 'f32' for info in operations)


@functools.cache  # each has a few KiB of its own in the compiled model
def integers(*values: int) -> Node:
    """Return them as a constant, one node for equal ones."""
    return ops.constant(np.array(values, np.int64))


@functools.cache
def number(value: float) -> Node:
    """Return it as a constant float32, one node for equal ones."""
    return ops.constant(np.float32(value))
