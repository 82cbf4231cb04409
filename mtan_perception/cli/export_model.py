# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan export``: write the network for another runtime."""

import argparse
import sys

from mtan_perception.cli.arguments import check_suffix, parse_names, parse_path, parse_size
from mtan_perception.cli.remarks import size_remarks


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``export`` subcommand."""
    parser = subparsers.add_parser(
        'export', help='write the network for ONNX Runtime, OpenVINO or TorchScript',
        description='Write the network, optimised and with its post-processing, for one image '
                    'size and set of tasks. Input: image, (1, H, W, 3) uint8 RGB. Outputs, those '
                    'of the tasks: label (1, H, W) uint8 and probability (1, H, W); depth '
                    '(1, H, W) in metres, or inverse as that of the weights; normal (1, H, W, 3), '
                    'unit vectors: x right, y down, z forward.')
    parser.set_defaults(run=run)
    parser.add_argument('--format', required=True, choices=('onnx', 'openvino', 'torchscript'))
    parser.add_argument('--out', required=True, type=parse_path, metavar='FILE',
                        help='.onnx, .xml (its weights in a .bin beside it) or .pt')
    parser.add_argument('--weights', default='default', metavar='W.safetensors',
                        help='a weights file, default or random (default %(default)s)')
    parser.add_argument('--tasks', metavar='NAME,...',
                        help='of segmentation, depth and normal; by default all')
    parser.add_argument('--input-size', metavar='HxW',
                        help='multiples of 8, or of the output stride where that is more; by '
                             'default that of the weights')


def run(args: argparse.Namespace) -> None:
    """Write the file and say what it takes and gives."""
    from mtan_perception.checkpoint import load_network
    from mtan_perception.geometry import INPUT_LIMITS
    from mtan_perception.inference.convolution import Convolution
    from mtan_perception.inference.export import EXPORTERS, FACTORIES, FinishedNetwork, notes_of
    from mtan_perception.inference.optimize import OptimizedMTAN
    from mtan_perception.model_card import UNTRAINED
    from mtan_perception.tasks import DEPTH, NYUV2_TASKS, select_tasks
    write, suffix = EXPORTERS[args.format]
    check_suffix('--out', args.out, suffix, f'a file of {args.format}')
    network, card = load_network(args.weights)
    if args.weights == 'random':
        print(UNTRAINED, file=sys.stderr)
    size = parse_size(args.input_size) if args.input_size else card.input_size
    multiple, least = card.size_multiple, INPUT_LIMITS[0]
    if size[0] % multiple or size[1] % multiple or min(size) < least:
        raise ValueError(f'--input-size: {size[0]}x{size[1]}; give multiples of {multiple}, '
                         f'at least {least}')
    available = [name for name in card.tasks if name in NYUV2_TASKS]
    if not available:
        raise ValueError(f"--weights: {args.weights} has the task(s) {', '.join(card.tasks)}; a "
                         f"file has images of {', '.join(NYUV2_TASKS)}")
    wanted = parse_names(args.tasks)
    tasks = select_tasks(available if wanted is None else wanted, available)
    finished = FinishedNetwork(
        OptimizedMTAN(network, FACTORIES.get(args.format, Convolution)), size, tasks,
        card.normal_axes, (card.mean, card.std), notes_of(card, tasks))
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write(finished, args.out)
    except ImportError as error:
        raise ValueError(f'--format {args.format}: {error}') from error
    except OSError as error:
        raise ValueError(f'--out: {args.out} cannot be written: {error.strerror or error}'
                         ) from error
    print(f'{args.out}: image (1, {size[0]}, {size[1]}, 3) uint8 RGB -> '
          f"{', '.join(finished.names())}")
    if DEPTH in tasks and card.depth_unit != 'metre':
        print('depth is inverse: larger is nearer, and it has no unit')
    elif DEPTH in tasks and card.corrects_depth:
        print(f'depth is that of a camera with a focal length of {card.focal_length:g} pixels at '
              f'this size; with another, f, multiply it by f / {card.focal_length:g}')
    for remark in size_remarks(card, tasks, size):
        print(remark)
