# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""From light to the image of an ordinary camera: lens, exposure, noise, compression."""

import math

import torch
from torch.nn import functional

from mtan_perception.synthetic.hashing import mix

_KERNEL = 9
_LUMA = (0.299, 0.587, 0.114)


def _vignette(light, dice):
    height, width = light.shape[-2:]
    y = torch.linspace(-1, 1, height, device=light.device)[:, None] * height / width
    x = torch.linspace(-1, 1, width, device=light.device)[None]
    fall = dice.uniform('sensor.vignette') ** 2 * 0.4
    return light / (1 + fall[:, None, None, None] * (x * x + y * y)) ** 2


def _expose(light, dice):
    """Scale each image to an exposure near the one an automatic camera would choose."""
    luma = (light * light.new_tensor(_LUMA)[:, None, None]).sum(1)
    # The mean of the square root forgives a bright window more than the mean does.
    level = luma.sqrt().mean((1, 2)) ** 2
    target = 0.12 * torch.exp2(dice.uniform('sensor.exposure', low=-1.1, high=1.0))
    light = light * (target / level.clamp(min=1e-6))[:, None, None, None]
    balance = torch.exp(dice.uniform('sensor.balance', 3, low=-0.12, high=0.12))
    return light * balance[:, :, None, None]


def _develop(light, dice):
    """Turn light into display values: a soft shoulder for the highlights, then gamma."""
    shoulder = dice.uniform('sensor.shoulder', low=1.0, high=1.8)[:, None, None, None]
    value = (1 - torch.exp(-shoulder * light)) / (1 - torch.exp(-shoulder))
    gamma = dice.uniform('sensor.gamma', low=1.8, high=2.5)[:, None, None, None]
    return value.clamp(1e-5, 1.2) ** (1 / gamma)


def _blur(image, dice):
    """Blur by defocus and by motion along a line; most images by little."""
    number, _, height, width = image.shape
    scale = width / 192
    defocus = 0.3 + 0.6 * dice.uniform('sensor.defocus') ** 4
    moving = dice.chance('sensor.motion', p=0.2)
    length = torch.where(moving, dice.uniform('sensor.motion_length', low=0.5, high=2.4), 0.0)
    angle = dice.uniform('sensor.motion_angle', high=math.pi)
    steps = torch.arange(_KERNEL, device=image.device) - _KERNEL // 2
    y, x = torch.meshgrid(steps, steps, indexing='ij')
    c, s = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    along, across = (x * c + y * s), (y * c - x * s)
    spread = (defocus * scale ** 0.5)[:, None, None]
    reach = (length * scale)[:, None, None] / 2
    away = (along.abs() - reach).clamp(min=0) ** 2 + across ** 2
    # Tiny weights are cut to 0: denormal numbers would slow the convolution down tenfold.
    kernel = (torch.exp(-away / (2 * spread ** 2)) - 1e-6).clamp(min=0)
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    padded = functional.pad(image, (_KERNEL // 2,) * 4, mode='replicate')
    blurred = functional.conv2d(padded.reshape(1, number * 3, *padded.shape[2:]),
                                kernel.repeat_interleave(3, 0)[:, None], groups=number * 3)
    return blurred.reshape(number, 3, height, width)


def _noise(image, dice, time):
    """Add noise of the sensor: a constant part and a part that grows with the light."""
    _, _, height, width = image.shape
    frame = dice.bits(f'sensor.noise.{time:.6f}')[:, None]
    count = torch.arange(3 * height * width, device=image.device)
    bits = mix(count + frame * 0x9E3779)
    # Four bytes summed are close to a normal distribution: variance 4 (256^2 - 1) / 12.
    total = (bits & 0xFF00FF) + ((bits >> 8) & 0xFF00FF)
    total = (total & 0xFFFF) + (total >> 16)
    normal = ((total.to(torch.float32) - 510.0) / 147.8).reshape(image.shape)
    floor = 0.002 + 0.018 * dice.uniform('sensor.read_noise') ** 3
    shot = 0.002 + 0.024 * dice.uniform('sensor.shot_noise') ** 2
    deviation = floor[:, None, None, None] + shot[:, None, None, None] * image.clamp(min=0).sqrt()
    return image + normal * deviation


def _cosines(device):
    """Return the 8 x 8 matrix of the orthonormal discrete cosine transform."""
    k = torch.arange(8, device=device, dtype=torch.float32)
    matrix = torch.cos(math.pi / 8 * (k + 0.5) * k[:, None]) / 2
    matrix[0] *= 0.5 ** 0.5
    return matrix


def _compress(image, dice):
    """
    Imitate the loss of JPEG: quantise the 8 x 8 cosine transform of luma and colour.

    The rounding is a smooth staircase, so that a difference in the last bit of a pixel stays one.
    """
    number, _, height, width = image.shape
    rows, columns = -(-height // 8), -(-width // 8)
    padded = functional.pad(image, (0, columns * 8 - width, 0, rows * 8 - height),
                            mode='replicate')
    red, green, blue = padded.unbind(1)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    planes = torch.stack((luma, blue - luma, red - luma), 1)
    blocks = planes.reshape(number, 3, rows, 8, columns, 8).transpose(3, 4)
    cosines = _cosines(image.device)
    coefficients = cosines @ blocks @ cosines.T
    worst = dice.chance('sensor.compressed', p=0.6) * dice.uniform('sensor.quality') ** 2
    k = torch.arange(8, device=image.device, dtype=torch.float32)
    step = (1 + 0.35 * (k + k[:, None])) * (0.012 + 0.09 * worst)[:, None, None]
    step = step[:, None] * image.new_tensor((1.0, 1.8, 1.8))[:, None, None]
    scaled = coefficients / step[:, :, None, None]
    rounded = scaled - torch.sin(2 * math.pi * scaled) / (2 * math.pi)
    blocks = cosines.T @ (rounded * step[:, :, None, None]) @ cosines
    planes = blocks.transpose(3, 4).reshape(planes.shape)[..., :height, :width]
    luma, blue, red = planes.unbind(1)
    red, blue = red + luma, blue + luma
    return torch.stack((red, (luma - _LUMA[0] * red - _LUMA[2] * blue) / _LUMA[1], blue), 1)


def photograph(light, dice, time):
    """
    Turn linear light (N, 3, H, W) into images (N, 3, H, W) within 0..1.

    :param time: seconds; only the noise depends on it.
    """
    image = _develop(_blur(_expose(_vignette(light, dice), dice), dice), dice)
    return _compress(_noise(image, dice, time), dice).clamp(0, 1)
