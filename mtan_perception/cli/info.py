# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan info``: print the card of a weights file."""

import argparse
import textwrap
from typing import Any

_WIDTH = 120


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``info`` subcommand."""
    parser = subparsers.add_parser('info', help='print what a weights file holds',
                                   description='Print the model card of a weights file.')
    parser.set_defaults(run=run)
    parser.add_argument('weights', metavar='WEIGHTS', help='a file, default or random')


def run(args: argparse.Namespace) -> None:
    """Print each entry of the card, on further lines where one is too short."""
    from mtan_perception.model_card import read_card
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
    for name, value in card.training.items():
        entries |= _lines(f'training {name}', value)
    width = max(map(len, entries))
    for name, value in entries.items():
        print(textwrap.fill(value, _WIDTH, initial_indent=f'{name:{width}}  ',
                            subsequent_indent=' ' * (width + 2)))


def _lines(name: str, value: Any) -> dict[str, str]:
    """Return what is to be said of a value by its name, each table within a table by its own."""
    if not isinstance(value, dict):
        return {name: str(value)}
    plain = {key: part for key, part in value.items() if not isinstance(part, dict)}
    lines = {name: ', '.join(f'{key}={part}' for key, part in plain.items())} if plain else {}
    for key in (key for key in value if key not in plain):
        lines |= _lines(f'{name} {key}', value[key])
    return lines
