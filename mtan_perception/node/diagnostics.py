# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What the node counts, and how it reads on /diagnostics."""

from collections import Counter
import json
import math
import statistics
import threading
import time

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

LOG_PERIOD = 5.0
"""An error of one kind is logged at most once in so many seconds; every one is counted."""

_STAGES = 'milliseconds of frame '


class Statistics:
    """Counts of a run and timings since the last report; the executor and the worker write it."""

    def __init__(self):
        """Start to count."""
        self._lock = threading.Lock()
        self._received = 0
        self._published = 0
        self._problems: Counter[str] = Counter()
        self._last = {'error': '', 'warning': ''}
        self._logged: dict[str, float] = {}
        self._last_received = -math.inf
        self._waiting_since: float | None = None
        """When the first image came of which there is nothing yet that somebody waits for."""
        self._clear_window()

    def count_received(self) -> None:
        """Count an image message."""
        with self._lock:
            self._received += 1
            self._window_received += 1
            self._last_received = time.monotonic()
            if self._waiting_since is None:
                self._waiting_since = self._last_received

    def count_unread(self) -> None:
        """Note that nobody waits for anything of a frame."""
        with self._lock:
            self._waiting_since = None

    def count_published(self, latency: float, stages: dict[str, float]) -> None:
        """
        Count a frame whose outputs were published.

        :param latency: from the arrival of the image to the end of publishing, in seconds.
        :param stages: parts of it by name, in seconds.
        """
        with self._lock:
            self._published += 1
            self._waiting_since = None
            self._latencies.append(latency)
            for name, seconds in stages.items():
                self._stages.setdefault(name, []).append(seconds)

    def count_error(self, kind: str, text: str) -> bool:
        """
        Count an error.

        :param kind: what failed, in one or two words; errors are counted and throttled by it.
        :returns: whether it is due to be logged.
        """
        return self._count('error', kind, text)

    def count_warning(self, kind: str, text: str) -> bool:
        """Count what somebody should know and what stops nothing, as `count_error` does."""
        return self._count('warning', kind, text)

    def _count(self, level: str, kind: str, text: str) -> bool:
        now, key = time.monotonic(), f'{level}s: {kind}'
        with self._lock:
            self._problems[key] += 1
            self._window_problems[level] += 1
            self._last[level] = text
            if now - self._logged.get(key, -LOG_PERIOD) < LOG_PERIOD:
                return False
            self._logged[key] = now
            return True

    def take_report(self, longest: float) -> tuple[bytes, str, dict[str, str]]:
        """
        Sum up and start the next window.

        :param longest: seconds that an image, and what is published of it, may take to come.
        :returns: level of DiagnosticStatus, message, values.
        """
        with self._lock:
            seconds = max(time.monotonic() - self._window_start, 1e-3)
            values = {
                'images received': str(self._received),
                'frames published': str(self._published),
                'input rate (Hz)': f'{self._window_received / seconds:.2f}',
                'output rate (Hz)': f'{len(self._latencies) / seconds:.2f}',
            }
            if self._latencies:
                values['latency (ms)'] = _milliseconds(self._latencies)
            for name, durations in self._stages.items():
                values[f'{name} (ms)'] = _milliseconds(durations)
            values |= {key: str(count) for key, count in sorted(self._problems.items())}
            values |= {f'last {level}': text for level, text in self._last.items() if text}
            level, message = self._judge(longest)
            self._clear_window()
        return level, message, values

    def _judge(self, longest: float) -> tuple[bytes, str]:
        now = time.monotonic()
        if self._window_problems['error']:
            return DiagnosticStatus.ERROR, self._last['error']
        if now - self._last_received > longest:
            return DiagnosticStatus.WARN, 'no image arrives'
        if self._window_problems['warning']:
            return DiagnosticStatus.WARN, self._last['warning']
        if self._waiting_since is not None and now - self._waiting_since > longest:
            return DiagnosticStatus.WARN, (
                f'images arrive, but for {now - self._waiting_since:.0f} s nothing has been '
                'published; see the log')
        return DiagnosticStatus.OK, 'running'

    def _clear_window(self) -> None:
        self._window_start = time.monotonic()
        self._window_received = 0
        self._window_problems: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._stages: dict[str, list[float]] = {}


def diagnostic_status(
    name: str, hardware: str, level: bytes, message: str, values: dict[str, str],
) -> DiagnosticStatus:
    """Fill the message; `hardware` is the device the network runs on."""
    return DiagnosticStatus(
        name=name, hardware_id=hardware, level=level, message=message,
        values=[KeyValue(key=key, value=value) for key, value in values.items()])


def describe_stages(stamp, latency: float, stages: dict[str, float]) -> str:
    """Return a line for the log about the frame of a stamp; `read_stages` reads it."""
    values = {name: round(1000 * seconds, 3)
              for name, seconds in {'latency': latency, **stages}.items()}
    return f'{_STAGES}{stamp.sec}.{stamp.nanosec:09d} {json.dumps(values)}'


def read_stages(line: str) -> tuple[str, dict[str, float]] | None:
    """Return a frame's stamp and its seconds by stage, None where the line is about another."""
    _, found, text = line.partition(_STAGES)
    if not found:
        return None
    stamp, _, values = text.partition(' ')
    return stamp, {name: value / 1000 for name, value in json.loads(values).items()}


def _milliseconds(durations: list[float]) -> str:
    return f'{1000 * statistics.median(durations):.1f}'
