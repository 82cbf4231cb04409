# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What this machine can compute on, and in which precision."""

import logging
import os
from pathlib import Path
import re

import torch

from mtan_perception.inference.errors import EngineError

_LOGGER = logging.getLogger(__name__)

# Of torch for CUDA and for the CPU, of cuBLAS and cuDNN, of torch where none of cuDNN's kernels
# gets the memory that it needs, and of C++.
_OUT_OF_MEMORY = (
    'out of memory', "can't allocate memory", 'STATUS_ALLOC_FAILED', 'STATUS_NOT_INITIALIZED',
    'unable to find an engine', 'bad_alloc')

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


def choose_device(name: str) -> torch.device:
    """
    Return the device for 'auto', 'cpu', 'cuda' or 'cuda:N'.

    :raises EngineError: naming what this machine has, for one that it has not.
    """
    available = ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]
    if name == 'auto' and len(available) > 1:
        problem = _cuda_problem(available[1])
        if problem is None:
            return torch.device(available[1])
        _LOGGER.warning('device: %s cannot be used (%s); going on, slower, on the CPU',
                        available[1], problem)
    if name == 'auto':
        return torch.device('cpu')
    if not re.fullmatch(r'cpu|cuda(:\d+)?', str(name)):
        raise EngineError(f"device: {name!r} is not known; choose 'auto', 'cpu', 'cuda' or "
                          f"'cuda:N' (available here: {', '.join(available)})")
    wanted = 'cuda:0' if name == 'cuda' else str(name)
    if wanted not in available:
        raise EngineError(f'device: {name!r} is not available; this machine has '
                          f"{', '.join(available)}; choose one of them or 'auto'")
    problem = None if wanted == 'cpu' else _cuda_problem(wanted)
    if problem is not None:
        raise EngineError(f"device: {name!r} cannot be used: {problem}; choose 'cpu' or 'auto'")
    return torch.device(wanted)


def _cuda_problem(device: str) -> str | None:
    """Return why this torch cannot use a device that is there, for want of a driver or kernels."""
    try:
        # A convolution, which needs cuDNN, too.
        torch.conv2d(*torch.ones(2, 1, 1, 8, 8, device=device)).item()
    except RuntimeError as error:
        # Being full is another matter: it may be less so later, and there is a way out of it.
        return None if is_out_of_memory(error) else str(error).splitlines()[0]
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether a device is full, for which each library has errors of its own."""
    return any(text in str(error) for text in _OUT_OF_MEMORY)


def choose_precision(name: str, device: torch.device) -> str:
    """
    Return the precision for 'auto' or one of `DTYPES`; fp32, with a warning, where it is lacking.

    :raises EngineError: for one that is not known.
    """
    if name not in ('auto', *DTYPES):
        raise EngineError(f"precision: {name!r} is not known; choose 'auto', "
                          f"{', '.join(map(repr, DTYPES))}")
    supported = ['fp32', 'bf16']
    if device.type == 'cuda':
        supported = ['fp32', 'fp16']
        if is_made_for_bfloat16(device):
            supported.append('bf16')
    if name == 'auto':
        return 'fp16' if device.type == 'cuda' else 'fp32'
    if name not in supported:
        _LOGGER.warning('precision: %s is not supported on %s (%s are); going on with fp32',
                        name, device, ', '.join(supported))
        return 'fp32'
    return name


def is_made_for_bfloat16(device: torch.device) -> bool:
    """Tell whether a device is faster in bfloat16 than in float32; others emulate it."""
    if device.type == 'cuda':
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
