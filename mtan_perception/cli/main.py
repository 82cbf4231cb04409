# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Parse the command line of ``mtan`` and run one subcommand.

Each subcommand is a module with ``add_parser(subparsers)``, which sets ``run`` to a function of
the parsed arguments. Heavy imports belong inside that function, so that help comes at once.
"""

import argparse
from collections.abc import Sequence
import os
import signal
import sys

from mtan_perception import __version__
from mtan_perception.cli import (
    benchmark,
    evaluate,
    export_model,
    import_checkpoint,
    info,
    predict,
    prepare,
    render,
    train,
)
from mtan_perception.threads import share_cores

COMMANDS = (
    benchmark, evaluate, export_model, import_checkpoint, info, predict, prepare, render, train)

# What only some commands need, by the name that it is imported by: pip's.
_OPTIONAL = {'cv2': 'opencv-python', 'yaml': 'pyyaml'}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line; return 0, or 2 after an error, which is printed in one piece.

    As usual, the code is 128 and a signal's number after Ctrl-C or where nobody reads on.
    """
    parser = argparse.ArgumentParser(
        prog='mtan', description='Segmentation, depth and surface normals from one network.')
    parser.add_argument('--version', action='version', version=f'mtan_perception {__version__}')
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    args, others = parser.parse_known_args(argv)
    if others:
        # argparse gives key=value only from the first place where there are some.
        if args.command != 'train' or not all(map(train.is_key, others)):
            parser.error(f'unrecognized arguments: {" ".join(others)}')
        args.keys += others
    share_cores()
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, ValueError) as error:  # our own errors are ValueErrors, made to be read
        return _fail(args.command, str(error))
    except ModuleNotFoundError as error:
        if error.name not in _OPTIONAL:
            raise
        return _fail(args.command, f'it needs {error.name}, which is not installed; install it '
                                   f'with: python3 -m pip install {_OPTIONAL[error.name]}')
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _fail(command: str, message: str) -> int:
    print(f'mtan {command}: error: {message}', file=sys.stderr)
    return 2
