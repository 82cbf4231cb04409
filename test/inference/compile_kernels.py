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
from mtan_perception.inference.backends import triton_layers as layers
from mtan_perception.inference.backends.triton_choices import TILINGS

# Of each kernel what is no number: pointers, and fractions.
TYPES = {'branches': '*i64', 'bias': '*fp32', 'logits': '*fp32', 'probability': '*fp32',
         'depth': '*fp32', 'normal': '*fp32', 'label': '*u8', 'min_norm': 'fp32',
         **dict.fromkeys(('x', 'weight', 'addend', 'factor', 'other', 'other_weight', 'y'),
                         '*fp16')}
POINTWISE = {'PIXELS': layers._POINTWISE_PIXELS, 'CHANNELS': layers._POINTWISE_CHANNELS}
FINISH = {'PIXELS': layers._FINISH_PIXELS}
FORMS = [(kernels.complete, POINTWISE), (kernels.pool_most, POINTWISE | {'SIDE': 3}),
         (kernels.convolve_image, {'PIXELS': layers._STEM_PIXELS, 'OUTPUTS': 64}),
         (kernels.classify, FINISH | {'CHANNELS': 16}), (kernels.enlarge, FINISH),
         (kernels.point, FINISH)]
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
