# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Training of the network against that of a straight transcription of the equations."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.resnet import resnet18
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from train_in_memory import LOSSES

from mtan_perception.checkpoint import import_reference
from mtan_perception.inference.benchmark.original import attention, bottleneck, ReferenceMTAN
from mtan_perception.synthetic import render
from mtan_perception.tasks import NYUV2_TASKS
from mtan_perception.training.config import TrainConfig
from mtan_perception.training.layouts import DEFAULT_KINDS
from mtan_perception.training.sources import FileSource
from mtan_perception.training.trainer import Trainer

SIZE = (24, 32)
STEPS = 20


class SmallReference(ReferenceMTAN):
    """The same equations on resnet18, of which torchvision has no dilated form."""

    def __init__(self, tasks):
        nn.Module.__init__(self)
        self.tasks = dict(tasks)
        trunk = resnet18()
        for layer, first, others in ((trunk.layer3, 1, 2), (trunk.layer4, 2, 4)):
            layer[0].conv1.stride = layer[0].downsample[0].stride = (1, 1)
            for block, dilation in zip(layer, (first, others), strict=True):
                for conv in (block.conv1, block.conv2):
                    conv.dilation = conv.padding = (dilation, dilation)
        self.shared_conv = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool)
        widths = (64, 128, 256, 512)
        for number, width in enumerate(widths, 1):
            layer = getattr(trunk, f'layer{number}')
            setattr(self, f'shared_layer{number}_b', layer[:-1])
            setattr(self, f'shared_layer{number}_t', layer[-1])
            channels = width if number == 1 else 2 * width
            setattr(self, f'encoder_att_{number}', nn.ModuleList(
                [attention(channels, width // 4, width) for _ in tasks]))
            if number < 4:
                setattr(self, f'encoder_block_att_{number}', bottleneck(width, 2 * width))
        self.down_sampling = nn.MaxPool2d(2)
        self.decoders = nn.ModuleList([
            DeepLabHead(512, channels, (12, 24, 36)) for channels in tasks.values()])


def paper_losses(outputs, batch):
    label, depth, normal = (batch[name] for name in NYUV2_TASKS)
    known, facing = depth > 0, normal.norm(dim=1) > 0
    dots = (outputs['normal'] * normal).sum(1)
    return (functional.nll_loss(outputs['segmentation'], label, ignore_index=-1),
            (outputs['depth'] - depth).abs()[known].mean(),
            1 - dots[facing].mean())


def test_twenty_steps_lose_what_the_transcription_loses(tmp_path):
    rooms = render(range(1_000_000, 1_000_008), *SIZE)
    rooms.label[0, :9], rooms.depth[1, :, 5:], rooms.normal[2, ..., :9] = -1, 0, 0
    batch = {'image': rooms.rgb, 'segmentation': rooms.label, 'depth': rooms.depth,
             'normal': rooms.normal}
    samples = [{name: value[index] for name, value in batch.items()} for index in range(8)]
    source = FileSource(samples, samples, NYUV2_TASKS, DEFAULT_KINDS, LOSSES, SIZE)
    trainer = Trainer(replace(
        TrainConfig(), out=str(tmp_path), device='cpu', precision='fp64', steps=STEPS,
        stages='1:24x32:8', output_stride=8, head_channels=256, aspp_rates=(12, 24, 36),
        optimizer='sgd', learning_rate=0.02, weight_decay=0.0, clip=0.0, ema=0.0, dropout=0.0,
        threads=1), source)

    torch.manual_seed(1)
    reference = SmallReference(NYUV2_TASKS).train()
    for module in reference.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # which values it drops depends on the layout in memory
    torch.save(reference.state_dict(), tmp_path / 'reference.pth')
    trainer.network.load_state_dict(
        import_reference(tmp_path / 'reference.pth', NYUV2_TASKS, 'resnet18'))
    reference.double()
    batch = {name: value.double() if value.is_floating_point() else value
             for name, value in batch.items()}
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
                 for values in (trainer.card.mean, trainer.card.std))
    image = (batch['image'] - mean) / std
    optimizer = torch.optim.SGD(reference.parameters(), 0.02, momentum=0.9)

    history = []
    for step in range(STEPS):
        ours = torch.stack(list(trainer.train_step(batch, step / STEPS).values()))
        theirs = paper_losses(reference(image), batch)
        optimizer.param_groups[0]['lr'] = trainer.optimizer.param_groups[0]['lr']
        optimizer.zero_grad()
        sum(theirs).backward()
        optimizer.step()
        torch.testing.assert_close(ours, torch.stack(theirs).detach(), rtol=0, atol=1e-6)
        history.append(float(ours.sum()))
    assert history[-1] < 0.8 * history[0]
