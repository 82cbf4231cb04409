# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan import``: turn a checkpoint of the reference code or of LibMTL into our weights."""

import argparse
from pathlib import Path

from mtan_perception.cli.arguments import check_file, check_suffix, parse_path, parse_size
from mtan_perception.labels import LABEL_SETS, LabelSet, read_label_set
from mtan_perception.tasks import NYUV2_TASKS, parse_tasks, SEGMENTATION

# What the public training codes feed the network, as mean and std of RGB in 0..1. The range -1..1
# is called symmetric, because argparse would take a value that starts with - for an option.
_SCALINGS = {
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    '0..1': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    'symmetric': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``import`` subcommand."""
    parser = subparsers.add_parser(
        'import', help='convert a .pth of the reference code or of LibMTL',
        description='Convert a PyTorch checkpoint of this network, in the tensor names of the '
                    'reference code or of LibMTL, to safetensors with a model card. What the '
                    'checkpoint does not tell (input scaling, axes) has to be said here.')
    parser.set_defaults(run=run)
    parser.add_argument('checkpoint', type=parse_path, metavar='CKPT.pth')
    parser.add_argument('--tasks', required=True, metavar='NAME:CHANNELS,...',
                        help='in training order: segmentation:13,depth:1,normal:3')
    parser.add_argument('--out', required=True, type=parse_path, metavar='W.safetensors')
    parser.add_argument('--labels', metavar='NAME|FILE.yaml',
                        help=f'label set: {", ".join(LABEL_SETS)} or a YAML file; by default '
                             f'chosen by the number of classes')
    parser.add_argument('--input-size', default='288x384', metavar='HxW',
                        help='size it was trained at (default %(default)s)')
    parser.add_argument('--normal-axes', choices=('nyu', 'optical'), default='nyu',
                        help='z toward the camera or forward (default %(default)s)')
    parser.add_argument('--input-scaling', choices=tuple(_SCALINGS), default='imagenet',
                        help='of its training images (symmetric: -1..1); with another one it '
                             'predicts nonsense (default %(default)s)')
    parser.add_argument('--focal-length', type=float, metavar='PIXELS',
                        help='of its training images at the input size, for metric depth')
    parser.add_argument('--depth-unit', choices=('metre', 'inverse'),
                        help='inverse for disparity, as of Cityscapes (default metre, for the '
                             'label sets of Cityscapes inverse)')
    parser.add_argument('--backbone', default='resnet50', help='(default %(default)s)')


def run(args: argparse.Namespace) -> None:
    """Read, check, write; nothing is written unless every tensor fits."""
    from mtan_perception.checkpoint import import_reference, save_checkpoint
    from mtan_perception.model_card import ModelCard
    tasks = parse_tasks(args.tasks)
    _check_out(args.out, args.checkpoint)
    mean, std = _SCALINGS[args.input_scaling]
    labels = _label_set(args.labels, tasks)
    of_cityscapes = labels is not None and labels.name.startswith('cityscapes')
    card = ModelCard(
        tasks=tasks, backbone=args.backbone, labels=labels,
        input_size=parse_size(args.input_size), mean=mean, std=std,
        focal_length=args.focal_length, normal_axes=args.normal_axes,
        depth_unit=args.depth_unit or ('inverse' if of_cityscapes else 'metre'),
        training={'imported_from': args.checkpoint.name})
    state = import_reference(args.checkpoint, tasks, args.backbone)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(args.out, state, card)
    print(f'{args.out}: {len(state)} tensors, tasks {", ".join(tasks)}')
    unused = [repr(name) for name in tasks if name not in NYUV2_TASKS]
    if unused:
        print(f'{", ".join(unused)}: none of {", ".join(NYUV2_TASKS)}; predict, export and the '
              'node do not use it')


def _check_out(out: Path, checkpoint: Path) -> None:
    """Raise ValueError for what is no place to write to, the checkpoint itself above all."""
    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise ValueError(f'--out: {out} is the checkpoint itself; give another file')
    check_suffix('--out', out, '.safetensors', 'a weights file')
    check_file('--out', out)


def _label_set(source: str | None, tasks: dict[str, int]) -> LabelSet | None:
    if source is not None:
        return read_label_set(source)
    count = tasks.get(SEGMENTATION)
    return next((labels for labels in LABEL_SETS.values() if len(labels.names) == count), None)
