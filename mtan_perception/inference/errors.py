# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What may go wrong in the engine."""


class EngineError(ValueError):
    """A parameter or an image that the engine cannot work with; the message names it."""


class BackendError(RuntimeError):
    """A backend that cannot run here, and why; the engine then takes another one."""
