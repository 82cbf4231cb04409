# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Compile the triton backend's kernels for a GPU that need not be there: MAJOR * 10 + MINOR.

Prints a line for each: its name and the bytes of shared memory that a program of it takes.
"""

import inspect
import sys

from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mtan_perception.inference.backends import triton_kernels as kernels
from mtan_perception.inference.backends.triton_choices import TILINGS

# Of each kernel what is no number: pointers, and fractions.
TYPES = {'branches': '*i64', 'bias': '*fp32', 'logits': '*fp32', 'probability': '*fp32',
         'depth': '*fp32', 'normal': '*fp32', 'label': '*u8', 'min_norm': 'fp32',
         **dict.fromkeys(('x', 'weight', 'addend', 'factor', 'other', 'other_weight', 'y'),
                         '*fp16')}
FORMS = [(kernels.complete, {'PIXELS': 32, 'CHANNELS': 64}),
         (kernels.convolve_image, {'PIXELS': 64, 'OUTPUTS': 64}),
         (kernels.pool_most, {'SIDE': 3, 'PIXELS': 32, 'CHANNELS': 64}),
         (kernels.classify, {'CHANNELS': 16, 'PIXELS': 128}),
         (kernels.enlarge, {'PIXELS': 128}), (kernels.point, {'PIXELS': 128})]
WITH_SHORTCUT = {'HAS_BRANCHES': False, 'HAS_OTHER': True, 'IS_POINT': True}
PYRAMID = {'HAS_BRANCHES': True, 'HAS_OTHER': False, 'IS_POINT': False}


def main() -> None:
    """Compile a layer in each of the tiles, the pyramid in one, and the other kernels."""
    target = GPUTarget('cuda', int(sys.argv[1]), 32)
    for kernel, constants in FORMS:
        _compile(target, kernel, constants)
    for tiling in TILINGS:
        for setting in (WITH_SHORTCUT, PYRAMID)[:2 if tiling == TILINGS[0] else 1]:
            _compile(target, kernels.convolve, setting | {
                'PIXELS': tiling.pixels, 'OUTPUTS': tiling.outputs, 'INPUTS': tiling.inputs},
                num_warps=tiling.warps, num_stages=tiling.stages, maxnreg=tiling.registers)


def _compile(target: GPUTarget, kernel, constants: dict, **options) -> None:
    names = inspect.signature(kernel.fn).parameters
    signature = {name: 'constexpr' if name in constants else TYPES.get(name, 'i32')
                 for name in names}
    # All channels and strides are multiples of 16, as launching would find out.
    aligned = {(index,): [['tt.divisibility', 16]] for index, (name, kind) in enumerate(
        signature.items()) if kind.startswith('*') or name.endswith(('_channels', '_w', '_t'))}
    compiled = compile_kernel(ASTSource(kernel, signature, constants, aligned), target, options)
    print(kernel.__name__, compiled.metadata.shared)


if __name__ == '__main__':
    main()
