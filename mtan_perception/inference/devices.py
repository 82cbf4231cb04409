# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What this machine can compute on, and in which precision."""

import ctypes
import logging
import os
from pathlib import Path
import re

from mtan_perception.inference.errors import EngineError, first_line

_LOGGER = logging.getLogger(__name__)

# Of torch for CUDA and for the CPU, of cuBLAS and cuDNN, of torch where none of cuDNN's kernels
# gets the memory that it needs, and of C++.
_OUT_OF_MEMORY = (
    'out of memory', "can't allocate memory", 'STATUS_ALLOC_FAILED', 'STATUS_NOT_INITIALIZED',
    'unable to find an engine', 'bad_alloc')

PRECISIONS = ('fp32', 'fp16', 'bf16')
# Without one of them torch finds no GPU, NVIDIA's or AMD's, and need not be loaded to look.
_DRIVERS = ('libcuda.so.1', 'nvcuda.dll')
_AMD_DRIVER = Path('/dev/kfd')


def choose_device(name: str) -> str:
    """
    Return the device for 'auto', 'cpu', 'cuda' or 'cuda:N' as torch names it, with its number.

    :raises EngineError: naming what this machine has, for one that it has not.
    """
    if str(name) == 'cpu':
        return 'cpu'
    available = ['cpu', *(f'cuda:{index}' for index in range(_count_gpus()))]
    if name == 'auto' and len(available) > 1:
        problem = _cuda_problem(available[1])
        if problem is None:
            return available[1]
        _LOGGER.warning('device: %s cannot be used (%s); going on, slower, on the CPU',
                        available[1], problem)
    if name == 'auto':
        return 'cpu'
    if not re.fullmatch(r'cuda(:\d+)?', str(name)):
        raise EngineError(f"device: {name!r} is not known; choose 'auto', 'cpu', 'cuda' or "
                          f"'cuda:N' (available here: {', '.join(available)})")
    wanted = 'cuda:0' if name == 'cuda' else str(name)
    if wanted not in available:
        raise EngineError(f'device: {name!r} is not available; this machine has '
                          f"{', '.join(available)}; choose one of them or 'auto'")
    problem = _cuda_problem(wanted)
    if problem is not None:
        raise EngineError(f"device: {name!r} cannot be used: {problem}; choose 'cpu' or 'auto'")
    return wanted


def is_gpu(device: str) -> bool:
    """Tell whether it is one that torch drives by CUDA, or by ROCm in CUDA's name."""
    return device.startswith('cuda')


def _count_gpus() -> int:
    if not _has_driver():
        return 0
    import torch
    return torch.cuda.device_count()


def _has_driver() -> bool:
    """Tell whether there is a GPU's driver, for which torch takes seconds and 500 MiB to look."""
    for name in _DRIVERS:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return _AMD_DRIVER.exists()


def _cuda_problem(device: str) -> str | None:
    """Return why this torch cannot use a device that is there, for want of a driver or kernels."""
    import torch
    try:
        # A convolution, which needs cuDNN, too.
        torch.conv2d(*torch.ones(2, 1, 1, 8, 8, device=device)).item()
    except RuntimeError as error:
        # Being full is another matter: it may be less so later, and there is a way out of it.
        return None if is_out_of_memory(error) else first_line(error)
    return None


def free_unused_memory(device: str) -> None:
    """Give a GPU what torch keeps of the memory of tensors that are gone."""
    if is_gpu(device):
        import torch
        torch.cuda.empty_cache()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether a device is full, for which each library has errors of its own."""
    return any(text in str(error) for text in _OUT_OF_MEMORY)


def choose_precision(name: str, device: str) -> str:
    """
    Return the precision for 'auto' or one of `PRECISIONS`.

    Where it is lacking that is fp32, with a warning.

    :raises EngineError: for one that is not known.
    """
    if name not in ('auto', *PRECISIONS):
        raise EngineError(f"precision: {name!r} is not known; choose 'auto', "
                          f"{', '.join(map(repr, PRECISIONS))}")
    supported = ['fp32', 'bf16']
    if is_gpu(device):
        supported = ['fp32', 'fp16']
        if is_made_for_bfloat16(device):
            supported.append('bf16')
    if name == 'auto':
        return 'fp16' if is_gpu(device) else 'fp32'
    if name not in supported:
        _LOGGER.warning('precision: %s is not supported on %s (%s are); going on with fp32',
                        name, device, ', '.join(supported))
        return 'fp32'
    return name


def is_made_for_bfloat16(device: str) -> bool:
    """Tell whether a device is faster in bfloat16 than in float32; others emulate it."""
    if is_gpu(device):
        import torch
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return not {'avx512_bf16', 'amx_bf16'}.isdisjoint(describe_processor('flags').split())


def uses_matrix_units() -> bool:
    """
    Tell whether the processor multiplies bfloat16 eight times as fast as float32: AMX.

    With `MTAN_AMX=0` in the environment it counts as one that does not.
    """
    return (os.environ.get('MTAN_AMX') != '0'
            and 'amx_bf16' in describe_processor('flags').split())


def describe_processor(entry: str) -> str:
    """Return an entry of the first processor in /proc/cpuinfo, '' outside Linux or without it."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return ''
    entries = (line.partition(':') for line in lines)
    return next((value.strip() for name, _, value in entries if name.strip() == entry), '')
