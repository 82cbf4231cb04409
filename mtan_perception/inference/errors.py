# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What may go wrong in the engine."""


class EngineError(ValueError):
    """A parameter or an image that the engine cannot work with; the message names it."""


class BackendError(RuntimeError):
    """A backend that cannot run here, and why; the engine then takes another one."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def in_one_line(error: Exception) -> str:
    """Return the message of an error without line breaks; of some the first line says nothing."""
    return ' '.join(str(error).split())
