# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What the node costs beside its engine, for ``mtan benchmark --node``."""
