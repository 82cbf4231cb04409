# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan info``: print the card of a weights file."""

import argparse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``info`` subcommand."""
    parser = subparsers.add_parser('info', help='print what a weights file holds',
                                   description='Print the model card of a weights file.')
    parser.set_defaults(run=run)
    parser.add_argument('weights', metavar='WEIGHTS', help='a file, default or random')


def run(args: argparse.Namespace) -> None:
    """Print one line for each entry of the card."""
    from mtan_perception.checkpoint import read_card
    card = read_card(args.weights)
    entries = {
        'tasks': ', '.join(f'{name}:{channels}' for name, channels in card.tasks.items()),
        'backbone': f'{card.backbone}, output stride {card.output_stride}',
        'heads': f'{card.head_channels} channels, rates {", ".join(map(str, card.aspp_rates))}',
        'labels': f'{card.labels.name}: {", ".join(card.labels.names)}' if card.labels else '-',
        'input size': f'{card.input_size[0]}x{card.input_size[1]}',
        'mean, std': f'{card.mean}, {card.std}',
        'focal length': f'{card.focal_length} px' if card.focal_length else 'unknown',
        'depth unit': card.depth_unit,
        'normal axes': card.normal_axes,
    }
    entries |= {f'training {name}': value for name, value in card.training.items()}
    width = max(map(len, entries))
    for name, value in entries.items():
        print(f'{name:{width}}  {value}')
