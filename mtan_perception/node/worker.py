# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The one thread that owns the device, and a slot for each camera's newest frame before it."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
import math
import threading
import time
from typing import Any

_HAND_OVER = 0.003
"""Seconds in which a waiting thread wakes up and brings a frame to the network."""


class Worker:
    """
    Run jobs in order and, between them, the newest frame of each slot.

    A frame that arrives while another waits in its slot takes its place, so latency stays one
    frame whatever the input rate. The frames of all slots are taken together: a camera that is
    faster than another replaces its own frames and never keeps the other waiting.

    CUDA graphs and compiled models belong to the thread that made them: building the engine is a
    job, so that building and running share this thread.
    """

    def __init__(self, process: Callable[[list[Any]], None]):
        """
        Start the thread.

        :param process: called with the frames that are taken, one at most from each slot, in the
            order in which they came; it must not raise.
        """
        self._process = process
        self._changed = threading.Condition()
        self._jobs: list[tuple[Callable[[], Any], Future]] = []
        self._frames: dict[str, Any] = {}
        self._dropped: Counter[str] = Counter()
        self._min_period = 0.0
        self._last_due = -math.inf
        self._stopping = False
        self._is_idle = False
        # A daemon: a forward pass in flight must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name='worker', daemon=True)
        self._thread.start()

    def dropped(self, slot: str = '') -> int:
        """Count the frames of a slot that a newer one replaced."""
        return self._dropped[slot]

    def limit_rate(self, max_rate: float) -> None:
        """
        Take at most so many frames a second.

        :param max_rate: in Hz; 0 for no limit.
        """
        with self._changed:
            self._min_period = 1 / max_rate if max_rate > 0 else 0.0
            self._changed.notify()

    def offer(self, frame: Any, slot: str = '') -> None:
        """Put a frame into a slot, and let the thread begin with it; blocks for no longer."""
        with self._changed:
            self._dropped[slot] += slot in self._frames
            self._frames[slot] = frame
            is_taken = self._is_idle and self._frame_is_due()
            self._changed.notify()
        if is_taken:
            # The interpreter is the thread's now. Else it would be shared with what rclpy does to
            # wait for the next message, which takes most of a millisecond.
            time.sleep(_HAND_OVER)

    def give_back(self, frame: Any, slot: str = '') -> None:
        """Put a taken frame back into its slot, unless a newer one has come."""
        with self._changed:
            self._dropped[slot] += slot in self._frames
            self._frames.setdefault(slot, frame)

    def clear(self) -> None:
        """Empty every slot."""
        with self._changed:
            self._frames = {}

    def submit(self, job: Callable[[], Any]) -> Future:
        """Run `job` on the thread before the next frame; its result or error is the future's."""
        future: Future = Future()
        with self._changed:
            self._jobs.append((job, future))
            self._changed.notify()
        return future

    def stop(self, timeout: float) -> bool:
        """
        End the thread after what it is doing.

        :param timeout: in seconds.
        :returns: whether it has ended.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_idle = True
                while not (self._stopping or self._jobs or self._frame_is_due()):
                    self._changed.wait(self._wait_time())
                self._is_idle = False
                if self._stopping:
                    return
                job = self._jobs.pop(0) if self._jobs else None
                if job is None:
                    frames, self._frames = list(self._frames.values()), {}
                    self._last_due = self._take_time()
            if job is None:
                self._process(frames)
            else:
                _run_job(*job)
                job = None  # Its result, an engine, may be freed before the next one comes.

    def _frame_is_due(self) -> bool:
        return bool(self._frames) and time.monotonic() >= self._last_due + self._min_period

    def _wait_time(self) -> float | None:
        """Until the waiting frame is due, in seconds; None, for ever, where there is none."""
        if not self._frames:
            return None
        wait = self._last_due + self._min_period - time.monotonic()
        return min(max(0.0, wait), threading.TIMEOUT_MAX)

    def _take_time(self) -> float:
        """When the frame was due, so that waking late does not add up; now after a pause."""
        now, due = time.monotonic(), self._last_due + self._min_period
        return due if now - due < self._min_period else now


def _run_job(job: Callable[[], Any], future: Future) -> None:
    try:
        future.set_result(job())
    except BaseException as error:  # Handed to whoever waits for the future.
        future.set_exception(error)
