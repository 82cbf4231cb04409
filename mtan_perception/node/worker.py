# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The one thread that owns the device, and the one slot for the newest frame in front of it."""

from collections.abc import Callable
from concurrent.futures import Future
import threading
import time
from typing import Any


class Worker:
    """
    Run jobs in order and, between them, the newest frame.

    A frame that arrives while another waits takes its place, so latency stays one frame whatever
    the input rate. CUDA graphs and compiled models belong to the thread that made them: building
    the engine is a job, so that building and running share this thread.
    """

    def __init__(self, process: Callable[[Any], None]):
        """
        Start the thread.

        :param process: called with each frame that is taken; it must not raise.
        """
        self._process = process
        self._changed = threading.Condition()
        self._jobs: list[tuple[Callable[[], Any], Future]] = []
        self._frame: Any = None
        self._dropped = 0
        self._min_period = 0.0
        self._last_due = 0.0
        self._stopping = False
        # A daemon: a forward pass in flight must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name='worker', daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Count the frames that a newer one replaced."""
        return self._dropped

    def limit_rate(self, max_rate: float) -> None:
        """
        Take at most so many frames a second.

        :param max_rate: in Hz; 0 for no limit.
        """
        with self._changed:
            self._min_period = 1 / max_rate if max_rate > 0 else 0.0
            self._changed.notify()

    def offer(self, frame: Any) -> None:
        """Put a frame into the slot; never blocks for longer than it takes to store it."""
        with self._changed:
            self._dropped += self._frame is not None
            self._frame = frame
            self._changed.notify()

    def clear(self) -> None:
        """Empty the slot."""
        with self._changed:
            self._frame = None

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
                while not (self._stopping or self._jobs or self._frame_is_due()):
                    self._changed.wait(self._wait_time())
                if self._stopping:
                    return
                job = self._jobs.pop(0) if self._jobs else None
                if job is None:
                    frame, self._frame = self._frame, None
                    self._last_due = self._take_time()
            if job is None:
                self._process(frame)
            else:
                _run_job(*job)

    def _frame_is_due(self) -> bool:
        return self._frame is not None and time.monotonic() >= self._last_due + self._min_period

    def _wait_time(self) -> float | None:
        """Until the waiting frame is due, in seconds; None, for ever, where there is none."""
        if self._frame is None:
            return None
        return max(0.0, self._last_due + self._min_period - time.monotonic())

    def _take_time(self) -> float:
        """When the frame was due, so that waking late does not add up; now after a pause."""
        now, due = time.monotonic(), self._last_due + self._min_period
        return due if now - due < self._min_period else now


def _run_job(job: Callable[[], Any], future: Future) -> None:
    try:
        future.set_result(job())
    except BaseException as error:  # Handed to whoever waits for the future.
        future.set_exception(error)
