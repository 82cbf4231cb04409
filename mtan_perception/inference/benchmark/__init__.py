# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""How fast the engine's backends are, next to the straight transcription of the original."""
