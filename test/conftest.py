# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Let every test import the oracle of the network, test/network/reference_mtan.py."""

from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent / 'network'))
