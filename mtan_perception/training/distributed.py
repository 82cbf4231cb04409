# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Training in several processes: who takes part, and what they have to agree on."""

from collections.abc import Sequence
import os

import torch
from torch import distributed, nn, Tensor


def start() -> tuple[int, int, int]:
    """
    Join the processes that torchrun has started; alone, do nothing.

    :returns: rank, number of processes, and the rank on this machine.
    """
    if 'WORLD_SIZE' not in os.environ or int(os.environ['WORLD_SIZE']) == 1:
        return 0, 1, 0
    if not distributed.is_initialized():
        # Both: gradients travel between GPUs, the clock between CPUs.
        backend = 'cpu:gloo,cuda:nccl' if torch.cuda.is_available() else 'gloo'
        distributed.init_process_group(backend)
    return distributed.get_rank(), distributed.get_world_size(), int(os.environ['LOCAL_RANK'])


def stop() -> None:
    """Leave the processes; alone, do nothing."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def is_parallel() -> bool:
    """Return whether other processes train along."""
    return distributed.is_available() and distributed.is_initialized()


def mean_over_processes(x: Tensor) -> Tensor:
    """Return the mean of a floating-point tensor over the processes; alone, the tensor."""
    if not is_parallel():
        return x
    x = x.clone()
    distributed.all_reduce(x)
    return x / distributed.get_world_size()


def agree(values: Sequence[float]) -> list[float]:
    """Return the values of the first process: clocks differ, but decisions must not."""
    if not is_parallel():
        return list(values)
    shared = torch.tensor(values, dtype=torch.float64)
    distributed.broadcast(shared, 0)
    return shared.tolist()


class _Gather(torch.autograd.Function):
    """x of every process, (processes, *x.shape); gradients flow back to all of them."""

    @staticmethod
    def forward(_context, x: Tensor) -> Tensor:
        gathered = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, x.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(_context, gradient: Tensor) -> Tensor:
        # Each process's x is a part of every process's result.
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]


class SyncBatchNorm2d(nn.BatchNorm2d):
    """
    BatchNorm over the images of all processes, on any device.

    torch's SyncBatchNorm works on GPUs alone. The moments of the processes are exchanged at once
    and combined; sums of squares would lose small variances in float32. Every process must hold
    the same number of values per channel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x of (N, C, H, W) over each channel."""
        if not (self.training and is_parallel()):
            return super().forward(x)
        # As torch's own: moments in float32 at least, the result in the type of x.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        means, variances = _Gather.apply(torch.stack((mean, variance))).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if self.track_running_stats:
            count = distributed.get_world_size() * x.numel() // x.shape[1]
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        y = (wide - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]
        return y.to(x.dtype)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network with every BatchNorm2d taking its moments over all processes."""
    if device.type == 'cuda':
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, _synchronised(child))
    return network


def _synchronised(module: nn.BatchNorm2d) -> SyncBatchNorm2d:
    new = SyncBatchNorm2d(module.num_features, module.eps, module.momentum)
    new.to(module.weight)
    new.load_state_dict(module.state_dict())
    return new
