# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
A process that writes the network as an OpenVINO model, and ends.

PyTorch, which it takes to read, optimise and describe a network, stays out of the process that
runs it: 500 MiB, and seconds at each start.
"""

from contextlib import suppress
import json
import logging
import os
from pathlib import Path
import signal
import subprocess
import sys

import mtan_perception
from mtan_perception.inference.artefacts import artefact_folder
from mtan_perception.inference.errors import BackendError, EngineError, in_one_line
from mtan_perception.inference.weights_file import WeightsFile
from mtan_perception.model_card import CheckpointError
from mtan_perception.processes import end_with_parent

_ERRORS = {'CheckpointError': CheckpointError, 'OSError': OSError}
"""Those that are raised again in the process that asked."""


def write_model(path: Path, weights: WeightsFile, factory: str, size: tuple[int, int],
                tasks: tuple[str, ...], axes: str, is_exact: bool) -> None:
    """
    Write `path` (.xml) and its weights (.bin) by a process of its own.

    :param factory: name of what makes the convolutions.
    :param size, tasks, axes, is_exact: see build_model.
    :raises mtan_perception.model_card.CheckpointError: for weights that cannot be read, or are
        others by then.
    :raises OSError: if the files cannot be written.
    :raises EngineError: if a Ctrl-C has ended it: then nothing is to take its place.
    :raises BackendError: with the reason, for all else.
    """
    root = os.fspath(Path(mtan_perception.__file__).parents[1])
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(
        [*(os.path.abspath(folder) for folder in filter(None, sys.path)), root])}
    with suppress(OSError):  # without one it does without, too
        environment['MTAN_CACHE'] = os.fspath(artefact_folder())
    done = subprocess.run(
        [sys.executable, '-m', __name__, str(os.getpid()), json.dumps(
            [os.fspath(path.absolute()), weights.name, weights.digest, factory, size, tasks, axes,
             is_exact])],
        # Python looks for modules there first: it has none.
        cwd=path.parent, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        env=environment, check=False)
    if done.returncode == 0:
        return
    if done.returncode == -signal.SIGINT:  # a Ctrl-C, for whoever asked as well
        raise EngineError('openvino: interrupted while it built the network')
    try:
        kind, reason = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        kind, reason = '', f'its process ended with {done.returncode}'
    if kind in _ERRORS:
        raise _ERRORS[kind](reason)
    raise BackendError(f'openvino cannot build the network: {reason}')


def _write(path: str, weights: str, digest: str, factory: str, size: list[int],
           tasks: list[str], axes: str, is_exact: bool) -> None:
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
    if WeightsFile(weights).digest != digest:
        raise CheckpointError(f'{weights}: changed while it was read; start again')


def main() -> None:
    """Write what the arguments say; on failure the output's last line says why."""
    parent, what = sys.argv[1:]
    end_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C ends it without a traceback
    logging.basicConfig(format='%(message)s')  # warnings, to the standard error of who asked
    try:
        _write(*json.loads(what))
    except Exception as error:  # whatever it is, who asked goes on without
        kind = next((name for name, known in _ERRORS.items() if isinstance(error, known)), '')
        reason = str(error) if kind else f'{type(error).__name__}: {in_one_line(error)}'
        print(json.dumps([kind, reason]))
        sys.exit(1)


if __name__ == '__main__':
    main()
