# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Run the ``mtan`` command as ``python -m mtan_perception.cli``."""

import sys

from mtan_perception.cli.main import main

sys.exit(main())
