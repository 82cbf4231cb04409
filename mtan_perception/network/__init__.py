# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The Multi-Task Attention Network on a dilated-ResNet DeepLabv3; imports torch alone."""

from mtan_perception.network.mtan_deeplabv3 import MTANDeepLabv3

__all__ = ['MTANDeepLabv3']
