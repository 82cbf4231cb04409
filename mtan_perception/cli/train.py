# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan train``: train a network within a budget of time or steps."""

import argparse
from pathlib import Path
import signal
from typing import Any

_OPTIONS = ('data', 'root', 'minutes', 'epochs', 'steps', 'out', 'device', 'seed')


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``train`` subcommand."""
    parser = subparsers.add_parser(
        'train', help='train a network',
        description='Train a network. Keys come from the preset, then from the YAML file, then '
                    'from key=value arguments. The folder --out gets state.pt (to resume from), '
                    'best.safetensors and last.safetensors.')
    parser.set_defaults(run=run)
    parser.add_argument('keys', nargs='*', metavar='key=value',
                        help='any key of the configuration, for example learning_rate=0.0005; '
                             'before the options or after them')
    parser.add_argument('--config', type=Path, metavar='FILE.yaml')
    parser.add_argument('--preset', help='a recipe that suits the device: default')
    parser.add_argument('--data', help='synthetic, nyuv2, cityscapes, cityscapes_19 or folder')
    parser.add_argument('--root', metavar='FOLDER', help='of the data set; for folder its YAML')
    parser.add_argument('--minutes', type=float, help='length of the training by the clock')
    parser.add_argument('--epochs', type=float, help='length of the training in epochs')
    parser.add_argument('--steps', type=int, help='length of the training in steps')
    parser.add_argument('--out', metavar='FOLDER', help='made if it does not exist')
    parser.add_argument('--device', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--seed', type=int, help='of weights, order and rooms (default 0)')
    parser.add_argument('--resume', action='store_true',
                        help='take up the run in --out where it stopped')


def is_key(argument: str) -> bool:
    """Tell whether an argument is key=value, which may stand anywhere."""
    return not argument.startswith('-') and '=' in argument


def run(args: argparse.Namespace) -> None:
    """Train, or go on training."""
    import torch

    from mtan_perception.inference.devices import is_out_of_memory
    from mtan_perception.training import distributed
    from mtan_perception.training.config import LENGTHS, make_config, read_yaml
    from mtan_perception.training.trainer import Trainer
    keys = read_yaml(args.config) if args.config else {}
    given = _given(args)
    if not given.keys().isdisjoint(LENGTHS):  # in place of the file's, whichever that is
        keys = {name: value for name, value in keys.items() if name not in LENGTHS}
    keys |= given
    device = keys.get('device', 'auto')
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    config = make_config(keys, args.preset, 'cuda' if device.startswith('cuda') else 'cpu')
    # A cluster that takes its machine back asks first: what is asked is what Ctrl-C asks.
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        trainer = Trainer(config)
        if args.resume:
            trainer.resume()
        elif trainer.state_path.exists():
            raise ValueError(f'{trainer.state_path}: the folder holds a run, which this one would '
                             'replace; take it up with --resume, or choose another folder with '
                             '--out')
        trainer.train()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f'{str(error).splitlines()[0]} What helps: smaller batches or images '
                         '(stages=), fewer rendered frames (pool_gigabytes=), a lighter backbone; '
                         'what was trained so far is in --out') from error
    finally:
        signal.signal(signal.SIGTERM, former)
        distributed.stop()


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keys that are given on the command line."""
    keys = {}
    for entry in args.keys:
        name, sign, value = entry.partition('=')
        if not sign:
            raise ValueError(f'{entry!r} is not key=value')
        keys[name] = value
    return keys | {name: getattr(args, name) for name in _OPTIONS
                   if getattr(args, name) is not None}
