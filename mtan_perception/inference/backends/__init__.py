# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The runtimes that can execute the network, behind one interface.

A backend is called with the normalised images x (N, 3, h, w) float32 on its device, as its
`images` give them, and the names of the wanted tasks, in the network's order. It returns what
mtan_perception.inference.postprocess.finish describes, on the same device and of the same kind,
tensors or NumPy's arrays; they are valid until the next call. What it has to build for that it
builds on the call, unless `prepare` has; those that could run it meanwhile in another way say so.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
import logging
import os
from typing import Any, Protocol

import numpy as np

from mtan_perception.geometry import Fit
from mtan_perception.inference.errors import BackendError, EngineError

_LOGGER = logging.getLogger(__name__)


class Images(Protocol):
    """How images come to a backend, and its results back; TorchImages says more."""

    def prepare(self, image: np.ndarray, fit: Fit) -> bool:
        """Build what images like this lack to be loaded; return whether it was lacking."""

    def load(self, images: Sequence[np.ndarray], fits: Sequence[Fit]) -> tuple[list[Any], Any]:
        """Return each resized image, and the backend's input of all."""

    def wait(self) -> None:
        """Wait until the device has done what it was told."""

    def fetch(self, outputs: Mapping[Hashable, Any]) -> dict[Hashable, np.ndarray]:
        """Return contiguous arrays on the host."""


class Backend(Protocol):
    """What runs the network."""

    name: str
    precision: str
    """What it computes in, which may be wider than what was asked for."""
    images: Callable[[str, Sequence[float], Sequence[float]], Images]
    """Makes what goes with it, of a device, and of mean and std."""

    def __call__(self, x: Any, tasks: tuple[str, ...]) -> dict[str, Any]:
        """Return the finished images of the tasks."""

    def prepare(self, shape: tuple[int, ...], tasks: tuple[str, ...]) -> bool:
        """Build what a call with x of this shape would lack; return whether it lacked any."""


def build_backend(name: str, weights: str | os.PathLike, device: str, precision: str, axes: str,
                  failed: str | None = None) -> Backend:
    """
    Return a backend, and log which one and why.

    :param name: 'auto', or the wanted one of BACKENDS; where that cannot run here, a warning says
        why and torch takes its place.
    :param weights: see mtan_perception.checkpoint.load_network.
    :param device: 'cpu' or 'cuda:N'.
    :param precision: 'fp32', 'fp16' or 'bf16'.
    :param axes: those of the network's normals.
    :param failed: name of the one that has failed, and that this one takes the place of.
    :raises EngineError: for an unknown name.
    :raises mtan_perception.model_card.CheckpointError: for weights that cannot be read.
    """
    if name not in ('auto', *BACKENDS):
        raise EngineError(f"backend: {name!r} is not known; choose 'auto', "
                          f"{', '.join(map(repr, BACKENDS))}")
    for choice in _order(name, device):
        try:
            backend = BACKENDS[choice](weights, device, precision, axes)
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


def _order(name: str, device: str) -> list[str]:
    """Return the backends to try; torch, which always can, comes last."""
    if name == 'auto' and device == 'cpu':
        return ['openvino', 'torch']
    if name == 'auto':
        return ['triton', 'torch']
    return list(dict.fromkeys((name, 'torch')))


def _openvino(weights: str | os.PathLike, device: str, precision: str, axes: str) -> Backend:
    from mtan_perception.inference.backends.openvino_backend import OpenVINOBackend
    return OpenVINOBackend(weights, device, precision, axes)


def _torch(*arguments) -> Backend:
    from mtan_perception.inference.backends.torch_backend import TorchBackend
    return TorchBackend(*_in_torch(*arguments))


def _compiled(*arguments) -> Backend:
    from mtan_perception.inference.backends.torch_backend import TorchBackend
    return TorchBackend(*_in_torch(*arguments), compiled=True)


def _triton(*arguments) -> Backend:
    from mtan_perception.inference.backends.triton_backend import TritonBackend
    return TritonBackend(*_in_torch(*arguments))


def _onnxruntime(*arguments) -> Backend:
    from mtan_perception.inference.backends.onnxruntime_backend import ONNXRuntimeBackend
    return ONNXRuntimeBackend(*_in_torch(*arguments))


def _in_torch(weights: str | os.PathLike, device: str, *others: str) -> tuple:
    """Return what loads the network, and the device, for backends that are written in PyTorch."""
    import torch

    from mtan_perception.checkpoint import load_network
    return lambda: load_network(weights)[0], torch.device(device), *others


BACKENDS: dict[str, Callable[..., Backend]] = {
    'torch': _torch, 'triton': _triton, 'compile': _compiled, 'openvino': _openvino,
    'onnxruntime': _onnxruntime}
