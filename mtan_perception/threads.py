# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""How the threads of a forward pass behave toward everything else on the machine."""

import os


def share_cores() -> None:
    """
    Let OpenMP's threads sleep between two operations instead of spinning.

    Spinning threads of two processes on the same cores wait for each other: on two shared cores a
    frame then takes ten times as long. Call it before torch is imported; a policy that the
    environment names already is left alone.
    """
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
