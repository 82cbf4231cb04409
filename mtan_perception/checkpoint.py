# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
Weights on disk: safetensors with a card (mtan_perception.model_card).

Foreign checkpoints of the same network are read as tensors alone, never unpickled.
"""

from collections.abc import Mapping, Sequence
import itertools
import os
from pathlib import Path
import pickle
import re
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
import torch
from torch import nn, Tensor

from mtan_perception.files import written_whole
from mtan_perception.labels import LabelSet
from mtan_perception.model_card import (
    card_of,
    CheckpointError,
    COMPACT,
    locate,
    ModelCard,
    open_weights,
)
from mtan_perception.network import MTANDeepLabv3
from mtan_perception.network.dilated_resnet import BACKBONES
from mtan_perception.tasks import check_tasks, DEPTH, SEGMENTATION


def build_network(card: ModelCard) -> MTANDeepLabv3:
    """Return the network that the card describes, freshly initialised."""
    return MTANDeepLabv3(card.tasks, card.backbone, card.output_stride, card.head_channels,
                         card.aspp_rates)


def load_network(weights: str | os.PathLike) -> tuple[MTANDeepLabv3, ModelCard]:
    """
    Return a network in eval mode and float32 on the CPU, and its card.

    :param weights: the path of a weights file; ``default`` for the shipped ones; ``random`` for
        a compact untrained network, the same one each time, to see that everything runs.
    :raises CheckpointError: naming the file, what is wrong with it and the remedy.
    """
    if str(weights) == 'random':
        return _random_network().eval(), COMPACT
    path = locate(weights)
    state, card = read_checkpoint(path)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor
             for name, tensor in state.items()}
    try:
        with torch.device('meta'):  # no time lost on random numbers that are replaced at once
            network = build_network(card)
    except ValueError as error:
        raise CheckpointError(f'{path}: its card describes no network of this release: {error}'
                              ) from error
    _check_tensors(path, state, network.state_dict(), 'The file does not fit its own card')
    network.load_state_dict(state, assign=True)
    return network.eval(), card


def start_from(network: MTANDeepLabv3, weights: str | os.PathLike,
               labels: LabelSet | None = None) -> tuple[ModelCard, list[str]]:
    """
    Fill a network with what another one learnt, for tasks or classes that need not be the same.

    :param network: changed in place; tensors that fit by name and shape are taken, but for the
        output layer of classes that have other names.
    :param weights: the path of a weights file; ``default`` for the shipped ones.
    :param labels: the network's classes, None where they have no names.
    :returns: the card of the weights, and the names of the tensors that are left as they were.
    :raises CheckpointError: if the trunk does not fit; each tensor of it is named.
    """
    path = locate(weights)
    found, card = read_checkpoint(path)
    own = network.state_dict()
    trunk = {name: tensor for name, tensor in own.items() if name.startswith('trunk.')}
    _check_tensors(path, {name: found[name] for name in trunk if name in found}, trunk,
                   f'It is a {card.backbone} of architecture mtan; train with the same')
    fitting = {name: tensor for name, tensor in found.items()
               if name in own and tensor.shape == own[name].shape}
    if labels and card.labels and labels.names != card.labels.names:
        output = f'decoders.{SEGMENTATION}.{len(network.decoders[SEGMENTATION]) - 1}.'
        fitting = {name: tensor for name, tensor in fitting.items()
                   if not name.startswith(output)}
    network.load_state_dict(fitting, strict=False)
    return card, [name for name in own if name not in fitting]


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, Tensor], ModelCard]:
    """Return the tensors, on the CPU in the type they were saved in, and the card of a file."""
    path = Path(path)
    with open_weights(path, 'pt') as file:
        card = card_of(path, file)
        return {name: file.get_tensor(name) for name in file.keys()}, card


def save_checkpoint(path: str | os.PathLike, network: nn.Module | Mapping[str, Tensor],
                    card: ModelCard, dtype: torch.dtype | None = None) -> None:
    """
    Write weights and card, all or nothing: a failure leaves an existing file as it was.

    :param network: the network or its state dict, on any device.
    :param dtype: type to store floating-point tensors in; None for the type they have.
    :raises OSError: if the file cannot be written.
    """
    state = network.state_dict() if isinstance(network, nn.Module) else network
    state = {name: _storable(tensor, dtype) for name, tensor in state.items()}
    try:
        with written_whole(Path(path)) as temporary:
            save_file(state, temporary, card.to_metadata())
    except SafetensorError as error:  # how safetensors passes on a full disk
        raise OSError(f'{path}: cannot be written ({error})') from error


def import_reference(path: str | os.PathLike, tasks: Mapping[str, int],
                     backbone: str = 'resnet50') -> dict[str, Tensor]:
    """
    Read a ``.pth`` of this network in the names of the reference code or of LibMTL.

    :param tasks: name -> channels, in the order that the network was trained with.
    :returns: a state dict in our names, float32, for ``MTANDeepLabv3(tasks, backbone)``.
    :raises CheckpointError: for a file that is no state dict, that would run code, or whose
        tensors do not fit; each unknown, missing and mis-shaped one is listed.

    The state dict may be wrapped (``state_dict``, ``model``, ``model_state_dict``), its names
    may start with ``module.``, and BatchNorm's ``num_batches_tracked`` may be absent.
    """
    path = Path(path)
    check_tasks(tasks)
    _refuse_own(path)
    found = _unwrap(_load_tensors(path))
    if not found:
        raise CheckpointError(f'{path}: holds no state dict; save one with '
                              f'torch.save(network.state_dict(), ...)')
    with torch.device('meta'):
        expected = MTANDeepLabv3(tasks, backbone).state_dict()
    layout = _LIBMTL if any(name.startswith('encoder.') for name in found) else _REFERENCE
    renames = _module_names(layout, list(tasks), BACKBONES[backbone][1])
    theirs = {_rename(name, renames): name for name in expected}
    _refuse_other_network(path, list(found), [
        name for name, ours in theirs.items() if ours.startswith('trunk.')])
    for name in theirs:
        if name.endswith('.num_batches_tracked'):
            found.setdefault(name, torch.zeros((), dtype=torch.int64))
    _check_tensors(path, found, {name: expected[ours] for name, ours in theirs.items()},
                   'Check --tasks (names, order, channels) and --backbone')
    return {ours: _storable(found[name], expected[ours].dtype) for name, ours in theirs.items()}


def _random_network() -> MTANDeepLabv3:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the GPU's generators for good.
        torch.default_generator.manual_seed(0)
        network = build_network(COMPACT)
    # An untrained depth is about 0 m, which a consumer would never see: it is out of range.
    nn.init.constant_(network.decoders[DEPTH][-1].bias, 2.0)
    return network


def _storable(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.contiguous()


_MAX_PROBLEMS = 5
"""So many of a kind are named: of another network hundreds do not fit."""


def _check_tensors(path: Path, found: Mapping[str, Any], expected: Mapping[str, Tensor],
                   remedy: str) -> None:
    unknown = [f'unknown: {name}' for name in found if name not in expected]
    missing = [f'missing: {name} {tuple(tensor.shape)}'
               for name, tensor in expected.items() if name not in found]
    mis_shaped = []
    for name, tensor in expected.items():
        value = found.get(name, tensor)
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != tuple(tensor.shape):
            mis_shaped.append(f'mis-shaped: {name} {shape}, expected {tuple(tensor.shape)}')
    problems = [unknown, missing, mis_shaped]
    if any(problems):
        raise CheckpointError('\n  '.join([
            f'{path}: {sum(map(len, problems))} of its tensors do not fit the network. {remedy}.',
            *itertools.chain.from_iterable(map(_shortened, problems))]))


def _shortened(problems: list[str]) -> list[str]:
    """Return the first few problems of a kind, and how many more there are."""
    more = len(problems) - _MAX_PROBLEMS
    if more <= 1:
        return problems
    return [*problems[:_MAX_PROBLEMS], f'... and {more} more {problems[0].partition(":")[0]}']


def _refuse_own(path: Path) -> None:
    try:
        with open_weights(path) as file:
            card_of(path, file)
    except CheckpointError:
        return  # as it should be: it is to become one
    raise CheckpointError(f'{path}: is a weights file already; use it as --weights')


_LEAST_TRUNK = 0.1
"""Of the trunk's names a ResNet of another depth has a fifth and more."""


def _refuse_other_network(path: Path, found: Sequence[str], trunk: Sequence[str]) -> None:
    """Raise CheckpointError where next to no name is one of the trunk, whatever the tasks are."""
    if len(set(trunk).intersection(found)) < _LEAST_TRUNK * len(trunk):
        raise CheckpointError(
            f'{path}: is a checkpoint of another network, or has other names: they are like '
            f'{found[0]}, those of this network like {trunk[0]}; give one of the reference code '
            f'or of LibMTL')


def _load_tensors(path: Path) -> Any:
    try:
        with open(path, 'rb') as file:
            head = file.read(2)
        return torch.load(path, map_location='cpu', weights_only=True)
    except OSError as error:
        raise CheckpointError(f'{path}: cannot be opened ({error.strerror}); '
                              f'give the path of a PyTorch checkpoint') from error
    except pickle.UnpicklingError as error:
        # The reader's own advice is to unpickle after all; keep only what it stumbled over.
        reason = re.search(r'Unsupported[^\n.]*(\.\w[^\n.]*)*', str(error))
        if reason is None or not head.startswith((b'PK', b'\x80')):
            raise CheckpointError(f'{path}: is not a PyTorch checkpoint; give a .pth file '
                                  f'written by torch.save') from error
        raise CheckpointError(
            f'{path}: refused, because it holds more than tensors and could run code on loading '
            f'({reason.group().strip()}); where you trust it, save its state dict alone with '
            f'torch.save(network.state_dict(), ...)') from error
    except Exception as error:  # a damaged archive surfaces as many types
        reason = f'{type(error).__name__}: {error}'.splitlines()[0]
        raise CheckpointError(f'{path}: is damaged or no PyTorch checkpoint ({reason}); '
                              f'copy or download it again') from error


def _unwrap(content: Any) -> dict[str, Any]:
    for key in ('state_dict', 'model_state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        return {}
    return {str(name).removeprefix('module.'): value for name, value in content.items()}


_REFERENCE = {
    'stem': 'shared_conv.{index}',
    'body': 'shared_layer{number}_b.{block}',
    'last': 'shared_layer{number}_t',
    'mask': 'encoder_att_{number}.{index}',
    'encoder': 'encoder_block_att_{number}',
    'decoder': 'decoders.{index}',
}

_LIBMTL = {
    'stem': 'encoder.shared_conv.{index}',
    'body': 'encoder.shared_layer.{stage}.0.{block}',
    'last': 'encoder.shared_layer.{stage}.1',
    'mask': 'encoder.encoder_att.{stage}.{index}',
    'encoder': 'encoder.encoder_block_att.{stage}',
    'decoder': 'decoders.{task}',
}


def _module_names(layout: Mapping[str, str], tasks: list[str],
                  depths: tuple[int, ...]) -> dict[str, str]:
    """Return our module name -> its name in the layout."""
    names = {'trunk.conv1': layout['stem'].format(index=0),
             'trunk.bn1': layout['stem'].format(index=1)}
    for stage, depth in enumerate(depths):
        place = {'stage': stage, 'number': stage + 1}
        for block in range(depth):
            part = 'last' if block == depth - 1 else 'body'
            names[f'trunk.layer{stage + 1}.{block}'] = layout[part].format(block=block, **place)
        for index, task in enumerate(tasks):
            names[f'masks.{stage}.{task}'] = layout['mask'].format(index=index, **place)
        names[f'shared_encoders.{stage}.block'] = layout['encoder'].format(**place)
    for index, task in enumerate(tasks):
        names[f'decoders.{task}'] = layout['decoder'].format(index=index, task=task)
    return names


def _rename(name: str, modules: Mapping[str, str]) -> str:
    ours = next(module for module in modules if name.startswith(f'{module}.'))
    return modules[ours] + name.removeprefix(ours)
