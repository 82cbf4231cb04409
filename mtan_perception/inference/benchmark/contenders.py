# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
What is compared: the original in several runtimes, and each backend of ours.

A contender is named by whose network it is and by what runs it: ``original/eager``,
``ours/openvino``. All have the same weights and the same input, already on the device. PyTorch is
imported by those that run in it: it is part of their memory.
"""

from collections.abc import Callable
from pathlib import Path
import tempfile
from typing import Any, TYPE_CHECKING
import warnings

import numpy as np

from mtan_perception.inference.backends import BACKENDS
from mtan_perception.inference.errors import BackendError
from mtan_perception.tasks import NYUV2_TASKS

if TYPE_CHECKING:
    from torch import nn, Tensor

ORIGINALS = ('eager', 'compile', 'openvino', 'onnxruntime')
CONTENDERS = (*(f'original/{name}' for name in ORIGINALS), *(f'ours/{name}' for name in BACKENDS))
# The others run on either.
_ONLY_ON = {'original/openvino': 'cpu', 'original/onnxruntime': 'cpu', 'ours/openvino': 'cpu',
            'ours/triton': 'cuda'}
# In these files of the benchmark's folder the workers find the one set of weights.
ORIGINAL_WEIGHTS, OUR_WEIGHTS = 'original.pth', 'ours.safetensors'

Run = Callable[[], dict[str, Any]]


def contenders_on(kind: str) -> list[str]:
    """Return those of CONTENDERS that are for 'cpu' or for 'cuda'."""
    return [name for name in CONTENDERS if _ONLY_ON.get(name, kind) == kind]


def prepare(name: str, folder: Path, image: np.ndarray, tasks: tuple[str, ...], device: str,
            precision: str) -> Run:
    """
    Return a call that runs the contender on an image and returns its maps, tensors or arrays.

    :param image: (1, 3, H, W) float32, normalised.
    :param precision: of our backends; the original compiled for CUDA is in fp16 if they are.
    :raises BackendError: with the reason, if it cannot run here.
    """
    owner, _, runtime = name.partition('/')
    return (_ours if owner == 'ours' else _original)(
        runtime, folder, image, tasks, device, precision)


def _ours(runtime: str, folder: Path, image: np.ndarray, tasks: tuple[str, ...], device: str,
          precision: str) -> Run:
    backend = BACKENDS[runtime](folder / OUR_WEIGHTS, device, precision, 'optical')
    if backend.precision != precision:
        raise BackendError(f'{precision} does not hold these weights')
    x = image if runtime == 'openvino' else _tensor(image, device)
    return lambda: backend(x, tasks)


def _original(runtime: str, folder: Path, image: np.ndarray, tasks: tuple[str, ...], device: str,
              precision: str) -> Run:
    import torch

    from mtan_perception.inference.benchmark.original import ReferenceMTAN  # and torchvision
    network = ReferenceMTAN(NYUV2_TASKS).eval().requires_grad_(False)
    network.load_state_dict(torch.load(folder / ORIGINAL_WEIGHTS, weights_only=True))
    try:
        with torch.inference_mode():
            run = _PREPARE[runtime](network.to(device), _tensor(image, device), precision)
    except ImportError as error:
        raise BackendError(str(error)) from error
    return torch.inference_mode()(run)


def _tensor(image: np.ndarray, device: str) -> 'Tensor':
    import torch
    return torch.from_numpy(image).to(device)


def _eager(network: 'nn.Module', x: 'Tensor', precision: str) -> Run:
    return lambda: network(x)


def _compile(network: 'nn.Module', x: 'Tensor', precision: str) -> Run:
    import torch
    if x.device.type == 'cpu':
        compiled = torch.compile(network, dynamic=False)
    else:
        network, x = ((part.half() for part in (network, x)) if precision == 'fp16'
                      else (network, x))
        network = network.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        compiled = torch.compile(network, dynamic=False, mode='max-autotune')
    return lambda: compiled(x)


def _openvino(network: 'nn.Module', x: 'Tensor', precision: str) -> Run:
    import openvino
    import torch

    from mtan_perception.inference.backends.openvino_runtime import compile_model, infer
    if x.device.type != 'cpu':
        raise BackendError('runs on the CPU')
    # OpenVINO would trace it too, and run it twice more to compare: half a minute at 480x640.
    traced = torch.jit.trace(network, x, check_trace=False, strict=False)
    model = openvino.convert_model(traced, example_input=x, input=list(x.shape))
    request, image = compile_model(model).create_infer_request(), x.numpy()
    return lambda: dict(zip(NYUV2_TASKS, map(torch.from_numpy, infer(request, image).values()),
                            strict=True))


def _onnxruntime(network: 'nn.Module', x: 'Tensor', precision: str) -> Run:
    import onnx  # noqa: F401 (torch.onnx needs it)
    import onnxruntime
    import torch
    if x.device.type != 'cpu':
        raise BackendError('is measured on the CPU')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        path = f'{folder}/original.onnx'
        torch.onnx.export(network, (x,), path, input_names=['x'], output_names=list(NYUV2_TASKS),
                          opset_version=17, dynamo=False)
        session = onnxruntime.InferenceSession(path, options, ['CPUExecutionProvider'])
    image = x.numpy()
    return lambda: dict(zip(NYUV2_TASKS, map(torch.from_numpy, session.run(None, {'x': image})),
                            strict=True))


_PREPARE = {'eager': _eager, 'compile': _compile, 'openvino': _openvino,
            'onnxruntime': _onnxruntime}
