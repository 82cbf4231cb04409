# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The optimised network and its post-processing as a file for another runtime.

A file holds one size and one set of tasks. Its input `image` is (1, H, W, 3) uint8 RGB, and its
outputs are those of mtan_perception.inference.postprocess.finish: `label`, `probability`,
`depth` and `normal`.
"""

from collections.abc import Mapping, Sequence
import json
import os
from pathlib import Path
import tempfile
from types import MappingProxyType
import warnings

import torch
from torch import nn, Tensor

from mtan_perception.files import written_whole
from mtan_perception.inference.convolution import tiled_convolution
from mtan_perception.inference.optimize import OptimizedMTAN
from mtan_perception.inference.postprocess import finish
from mtan_perception.model_card import ModelCard
from mtan_perception.tasks import DEPTH, SEGMENTATION

ONNX_OPSET = 17
NOTES = 'mtan_perception'
"""Under which an OpenVINO model's rt_info has the notes."""


class FinishedNetwork(nn.Module):
    """
    The network for one size and one set of tasks, its images finished, as a tuple.

    :param scaling: mean and std for RGB in 0..1, where the input is uint8 (1, H, W, 3); None
        where it is the normalised (N, 3, H, W) float.
    :param notes: what a reader of the file has to know besides, by name: see `notes_of`.
    """

    def __init__(self, network: OptimizedMTAN, size: tuple[int, int], tasks: Sequence[str],
                 axes: str, scaling: tuple[Sequence[float], Sequence[float]] | None,
                 notes: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__()
        self.network, self.notes = network, notes
        self.size, self.tasks, self.axes = tuple(size), tuple(tasks), axes
        self.scaled = scaling is not None
        for name, values in zip(('mean', 'std'), scaling or ((), ()), strict=True):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the images in the order of `names`."""
        return tuple(self._finished(x).values())

    def _finished(self, x: Tensor) -> dict[str, Tensor]:
        if self.scaled:
            x = (x.permute(0, 3, 1, 2).float() - self.mean) / self.std
        dtype = self.network.stem.weight.dtype
        return finish(self.network.logits(x.to(dtype), self.tasks), self.size, self.axes)

    def example(self) -> Tensor:
        """Return an input."""
        device = self.network.stem.weight.device
        if self.scaled:
            return torch.zeros(1, *self.size, 3, dtype=torch.uint8, device=device)
        return torch.zeros(1, 3, *self.size, device=device)

    @torch.no_grad()
    def names(self) -> list[str]:
        """Return the names of the outputs."""
        return list(self._finished(self.example()))


def notes_of(card: ModelCard, tasks: Sequence[str]) -> dict[str, str]:
    """
    Return `labels`, a JSON list in the order of the ids, and `depth_unit` and `focal_length`.

    The latter, in pixels of the file's input, is that of the camera whose depth it gives.
    """
    notes = {}
    if SEGMENTATION in tasks:
        notes['labels'] = json.dumps(card.labels.names)
    if DEPTH in tasks:
        notes['depth_unit'] = card.depth_unit
        if card.focal_length:
            notes['focal_length'] = f'{card.focal_length:g}'
    return notes


def export_torchscript(network: FinishedNetwork, path: Path) -> None:
    """Write what torch.jit.load reads."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of tracing: each size that is read is meant as constant
        network.network.merge(network.tasks)  # before it is traced
        traced = torch.jit.trace(network, network.example(), check_trace=False)
    # Not straight into the file: torch's writer ends the process where the disk is full.
    content = traced.save_to_buffer(_extra_files=dict(network.notes))
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def export_onnx(network: FinishedNetwork, path: Path) -> None:
    """
    Write an ONNX file of opset 17.

    :raises ImportError: without the onnx package.
    """
    _need('onnx')
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')
        names = network.names()
        with written_whole(path) as temporary:
            torch.onnx.export(
                network, (network.example(),), str(temporary), input_names=['image'],
                output_names=names, opset_version=ONNX_OPSET, dynamo=False)
            _add_notes(temporary, network.notes)


def _add_notes(path: Path, notes: Mapping[str, str]) -> None:
    """Add them to an ONNX file as its metadata, without reading it."""
    import onnx
    model = onnx.ModelProto()
    onnx.helper.set_model_props(model, dict(notes))
    with open(path, 'ab') as file:  # two of protobuf's messages, one after the other, are one
        file.write(model.SerializeToString())


def export_openvino(network: FinishedNetwork, path: Path) -> None:
    """
    Write OpenVINO's two files, `path` (.xml) and, first, its weights (.bin), in float32.

    :raises ImportError: without the openvino package.
    :raises OSError: if they cannot be written.
    """
    _need('openvino')
    import openvino
    from openvino.preprocess import PrePostProcessor

    from mtan_perception.inference.backends.openvino_graph import build_model
    from mtan_perception.inference.backends.openvino_runtime import save_model
    # Whoever runs it chooses the precision.
    model = build_model(network.network, network.size, network.tasks, network.axes, is_exact=False)
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout('NHWC'))
    steps.input().model().set_layout(openvino.Layout('NCHW'))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).mean(
        network.mean.flatten().tolist()).scale(network.std.flatten().tolist())
    model = steps.build()
    for name, note in network.notes.items():
        model.set_rt_info(note, [NOTES, name])
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}.') as folder:
        temporary = Path(folder) / 'model.xml'
        save_model(model, temporary)
        path.unlink(missing_ok=True)  # never beside the weights of another
        os.replace(temporary.with_suffix('.bin'), path.with_suffix('.bin'))
        os.replace(temporary, path)


def _need(package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise ImportError(f'{error}; install it with: python3 -m pip install {package}'
                          ) from error


EXPORTERS = {'onnx': (export_onnx, '.onnx'), 'openvino': (export_openvino, '.xml'),
             'torchscript': (export_torchscript, '.pt')}
# OpenVINO's graph knows the Winograd convolutions; the others take what every runtime knows.
FACTORIES = {'openvino': tiled_convolution}
