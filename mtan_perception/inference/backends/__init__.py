# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The runtimes that can execute the network, behind one interface.

A backend is called with the normalised images x (N, 3, h, w) float32 on its device and the names
of the wanted tasks, in the network's order, and returns the tensors that
mtan_perception.inference.postprocess.finish describes, on the same device; they are valid until
the next call. What it has to build for that it builds on the call, unless `prepare` has; those
that could run it meanwhile in another way say so.
"""

from collections.abc import Callable
import logging
from typing import Protocol

import torch
from torch import Tensor

from mtan_perception.inference.errors import BackendError, EngineError
from mtan_perception.network import MTANDeepLabv3

_LOGGER = logging.getLogger(__name__)


class Backend(Protocol):
    """What runs the network."""

    name: str
    precision: str
    """What it computes in, which may be wider than what was asked for."""

    def __call__(self, x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the finished images of the tasks."""

    def prepare(self, shape: tuple[int, ...], tasks: tuple[str, ...]) -> bool:
        """Build what a call with x of this shape would lack; return whether it lacked any."""


def build_backend(name: str, load: Callable[[], MTANDeepLabv3], device: torch.device,
                  precision: str, axes: str, failed: str | None = None) -> Backend:
    """
    Return a backend, and log which one and why.

    :param name: 'auto', or the wanted one of BACKENDS; where that cannot run here, a warning says
        why and torch takes its place.
    :param load: returns the network in evaluation mode, float32, on the CPU.
    :param precision: 'fp32', 'fp16' or 'bf16'.
    :param axes: those of the network's normals.
    :param failed: name of the one that has failed, and that this one takes the place of.
    :raises EngineError: for an unknown name.
    """
    if name not in ('auto', *BACKENDS):
        raise EngineError(f"backend: {name!r} is not known; choose 'auto', "
                          f"{', '.join(map(repr, BACKENDS))}")
    for choice in _order(name, device, precision):
        try:
            backend = BACKENDS[choice](load, device, precision, axes)
        except BackendError as error:
            level = logging.INFO if name == 'auto' else logging.WARNING
            _LOGGER.log(level, 'backend: %s cannot be used: %s; going on with torch', choice,
                        error)
            continue
        if name == 'auto':
            why = 'the fastest that can run here'
        else:
            why = f'in place of {failed or name}' if failed or choice != name else 'as asked'
        _LOGGER.info('backend: %s on %s in %s, %s', choice, device, backend.precision, why)
        return backend
    raise EngineError(f'backend: none can run on {device} in {precision}')


def _order(name: str, device: torch.device, precision: str) -> list[str]:
    """Return the backends to try; torch, which always can, comes last."""
    if name == 'auto' and device.type == 'cpu':
        return ['openvino', 'torch']
    if name == 'auto':
        return ['triton', 'torch']
    return list(dict.fromkeys((name, 'torch')))


def _torch(*arguments) -> Backend:
    from mtan_perception.inference.backends.torch_backend import TorchBackend
    return TorchBackend(*arguments)


def _compiled(*arguments) -> Backend:
    from mtan_perception.inference.backends.torch_backend import TorchBackend
    return TorchBackend(*arguments, compiled=True)


def _triton(*arguments) -> Backend:
    from mtan_perception.inference.backends.triton_backend import TritonBackend
    return TritonBackend(*arguments)


def _openvino(*arguments) -> Backend:
    from mtan_perception.inference.backends.openvino_backend import OpenVINOBackend
    return OpenVINOBackend(*arguments)


def _onnxruntime(*arguments) -> Backend:
    from mtan_perception.inference.backends.onnxruntime_backend import ONNXRuntimeBackend
    return ONNXRuntimeBackend(*arguments)


BACKENDS: dict[str, Callable[..., Backend]] = {
    'torch': _torch, 'triton': _triton, 'compile': _compiled, 'openvino': _openvino,
    'onnxruntime': _onnxruntime}
