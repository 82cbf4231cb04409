# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: on a CPU, or on CUDA through TensorRT where it is installed; an optional extra."""

from collections.abc import Callable
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtan_perception import __version__
from mtan_perception.inference.artefacts import code_hash, NETWORK_SOURCES, provided
from mtan_perception.inference.backends.half_precision import fit_precision
from mtan_perception.inference.backends.latest_used import LatestUsed
from mtan_perception.inference.backends.torch_images import TorchImages
from mtan_perception.inference.errors import BackendError
from mtan_perception.inference.export import export_onnx, FinishedNetwork
from mtan_perception.inference.mapped_weights import fingerprint
from mtan_perception.network import MTANDeepLabv3

_LOGGER = logging.getLogger(__name__)

_PRECISIONS = {'cpu': ('fp32',), 'cuda': ('fp32', 'fp16')}
_RESULTS = {'tensor(float)': torch.float32, 'tensor(uint8)': torch.uint8}
_ELEMENTS = {torch.float32: np.float32, torch.uint8: np.uint8}
_TENSORRT, _CUDA, _CPU = (
    f'{name}ExecutionProvider' for name in ('Tensorrt', 'CUDA', 'CPU'))
_MAX_SESSIONS = 3  # each holds weights of its own


class ONNXRuntimeBackend:
    """
    Run the network as an ONNX model for each size and set of tasks; the files are kept on disk.

    :raises BackendError: without ONNX Runtime or a provider for the device, in bf16, and in fp16
        on a CPU.
    """

    name = 'onnxruntime'
    images = TorchImages

    def __init__(self, load: Callable[[], MTANDeepLabv3], device: torch.device, precision: str,
                 axes: str) -> None:
        try:
            import onnx  # noqa: F401 (the export needs it)
            import onnxruntime
        except ImportError as error:
            raise BackendError(f'{error}; install them with: python3 -m pip install onnx '
                               f'onnxruntime (for CUDA onnxruntime-gpu)') from error
        if precision not in _PRECISIONS[device.type]:
            raise BackendError(f'it does not run in {precision} on {device}')
        self._providers = _choose_providers(onnxruntime.get_available_providers(), device)
        _LOGGER.info('onnxruntime: %s', ', '.join(self._providers))
        self._axes, self._device, self._runtime = axes, device, onnxruntime

        def marked() -> MTANDeepLabv3:
            network = load()
            self._weights = fingerprint(network)
            return network
        self.precision, self._network = fit_precision(marked, device, precision)
        self._sessions: LatestUsed[Any] = LatestUsed(_MAX_SESSIONS)

    @torch.inference_mode()
    def __call__(self, x: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the finished images of the tasks."""
        session = self._session(tuple(x.shape[-2:]), tasks)
        parts = [self._run(session, image[None]) for image in x.contiguous()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def prepare(self, shape: tuple[int, ...], tasks: tuple[str, ...]) -> bool:
        """Build the session for a shape and tasks; return whether it was not there yet."""
        size = tuple(shape[-2:])
        lacked = (size, tasks) not in self._sessions
        self._session(size, tasks)
        return lacked

    def _session(self, size: tuple[int, int], tasks: tuple[str, ...]) -> Any:
        return self._sessions.use((size, tasks), lambda: self._build(size, tasks))

    def _run(self, session: Any, image: Tensor) -> dict[str, Tensor]:
        binding, where = session.io_binding(), (self._device.type, self._device.index or 0)
        results = {output.name: torch.empty(
            output.shape, dtype=_RESULTS[output.type], device=self._device)
            for output in session.get_outputs()}
        for bind, tensors in ((binding.bind_input, {'image': image}),
                              (binding.bind_output, results)):
            for name, tensor in tensors.items():
                bind(name, *where, _ELEMENTS[tensor.dtype], tuple(tensor.shape), tensor.data_ptr())
        if self._device.type == 'cuda':
            # The session has a stream of its own.
            torch.cuda.current_stream(self._device).synchronize()
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # the runtime's own errors have no common class
            raise BackendError(f'onnxruntime failed: {error}') from error
        return results

    def _build(self, size: tuple[int, int], tasks: tuple[str, ...]) -> Any:
        network = FinishedNetwork(self._network, size, tasks, self._axes, None)
        key = {'weights': self._weights, 'mtan_perception': __version__,
               'code': code_hash(*NETWORK_SOURCES),
               'torch': torch.__version__, 'onnxruntime': self._runtime.__version__,
               'device': _describe(self._device), 'precision': self.precision,
               'axes': self._axes, 'size': f'{size[0]}x{size[1]}', 'tasks': '+'.join(tasks)}
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Spinning threads take the cores from everything else on the robot.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        try:
            with provided('mtan.onnx', key, lambda path: export_onnx(network, path)) as path:
                if _TENSORRT in self._providers:
                    _LOGGER.info('onnxruntime: TensorRT builds its engine, which takes minutes '
                                 'unless %s has it already ...', path.parent)
                session = self._runtime.InferenceSession(str(path), options, [
                    (name, self._options(name, path.parent)) for name in self._providers])
        except Exception as error:  # as above
            raise BackendError(f'onnxruntime cannot build the network: {error}') from error
        taken = session.get_providers()[0]
        if taken not in self._providers:  # it is silent about libraries that do not load
            raise BackendError(f'onnxruntime took {taken}, as it cannot use '
                               f'{" or ".join(self._providers)} here')
        return session

    def _options(self, provider: str, folder: Path) -> dict[str, Any]:
        """
        Return a provider's options.

        :param folder: the model's own, for TensorRT's engines. It tells those of one model apart,
            but not models, nor weights.
        """
        if provider == _CPU:
            return {}
        options: dict[str, Any] = {'device_id': self._device.index}
        if provider == _TENSORRT:
            options |= {'trt_engine_cache_enable': True, 'trt_engine_cache_path': str(folder),
                        'trt_fp16_enable': self.precision == 'fp16'}
        return options


def _choose_providers(available: list[str], device: torch.device) -> list[str]:
    """Return the providers for the device, the fastest first."""
    wanted = [_CPU] if device.type == 'cpu' else [_TENSORRT, _CUDA]
    found = [name for name in wanted if name in available]
    if not found:
        raise BackendError(f'it has no provider for {device} (it has {", ".join(available)}); '
                           'install onnxruntime-gpu in place of onnxruntime')
    return found


def _describe(device: torch.device) -> str:
    return 'cpu' if device.type == 'cpu' else torch.cuda.get_device_name(device)
