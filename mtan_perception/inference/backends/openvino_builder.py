# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
A process that writes the network as an OpenVINO model, and ends.

PyTorch, which it takes to read, optimise and describe a network, stays out of the process that
runs it: 500 MiB, and seconds at each start.
"""

import json
import logging
import os
from pathlib import Path
import signal
import subprocess
import sys

import mtan_perception
from mtan_perception.inference.errors import BackendError, in_one_line
from mtan_perception.model_card import CheckpointError
from mtan_perception.processes import end_with_parent

_ERRORS = {'CheckpointError': CheckpointError, 'OSError': OSError}
"""Those that are raised again in the process that asked."""


def write_model(path: Path, weights: str, factory: str, size: tuple[int, int],
                tasks: tuple[str, ...], axes: str, is_exact: bool) -> None:
    """
    Write `path` (.xml) and its weights (.bin) by a process of its own.

    :param weights: see mtan_perception.checkpoint.load_network.
    :param factory: name of what makes the convolutions.
    :param size, tasks, axes, is_exact: see build_model.
    :raises mtan_perception.model_card.CheckpointError: for weights that cannot be read.
    :raises OSError: if the files cannot be written.
    :raises BackendError: with the reason, for all else.
    """
    package = Path(mtan_perception.__file__).parent
    done = subprocess.run(
        [sys.executable, '-m', __name__, json.dumps(
            [os.fspath(path.absolute()), weights, factory, size, tasks, axes, is_exact])],
        cwd=package.parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}, check=False)
    if done.returncode == 0:
        return
    try:
        kind, reason = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        kind, reason = '', f'its process ended with {done.returncode}'
    if kind in _ERRORS:
        raise _ERRORS[kind](reason)
    raise BackendError(f'openvino cannot build the network: {reason}')


def _write(path: str, weights: str, factory: str, size: list[int], tasks: list[str], axes: str,
           is_exact: bool) -> None:
    import torch

    from mtan_perception.checkpoint import load_network
    from mtan_perception.inference import convolution
    from mtan_perception.inference.backends.openvino_graph import build_model
    from mtan_perception.inference.backends.openvino_runtime import save_model
    from mtan_perception.inference.mapped_weights import optimize_mapped
    network = optimize_mapped(load_network(weights)[0], getattr(convolution, factory),
                              torch.contiguous_format)
    with torch.inference_mode():
        model = build_model(network, tuple(size), tuple(tasks), axes, is_exact)
    save_model(model, Path(path))


def main() -> None:
    """Write what the only argument says; on failure the output's last line says why."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C ends it without a traceback
    logging.basicConfig(format='%(message)s')  # warnings, to the standard error of who asked
    try:
        _write(*json.loads(sys.argv[1]))
    except Exception as error:  # whatever it is, who asked goes on without
        kind = next((name for name, known in _ERRORS.items() if isinstance(error, known)), '')
        print(json.dumps([kind, str(error) if kind else in_one_line(error)]))
        sys.exit(1)


if __name__ == '__main__':
    main()
