# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""A store of what was built for the last few sizes and sets of tasks."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

Built = TypeVar('Built')


class LatestUsed(OrderedDict[Hashable, Built]):
    """
    A dictionary in the order of the last use, without those used longest ago.

    :param most: entries to keep.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def use(self, key: Hashable, build: Callable[[], Built]) -> Built:
        """Return the value of a key, built if it is not there."""
        if key not in self:
            self[key] = build()
        self.move_to_end(key)
        while len(self) > self._most:
            self.popitem(last=False)
        return self[key]
