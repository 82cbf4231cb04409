# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Train the network: data streams, losses, weighting of tasks, and the trainer."""
