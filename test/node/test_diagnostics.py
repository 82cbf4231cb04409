# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What the diagnostics make of what comes and goes."""

from types import SimpleNamespace

import pytest

pytest.importorskip('diagnostic_msgs', reason='the node needs the ROS message packages')

from mtan_perception.node import diagnostics
from mtan_perception.node.diagnostics import DiagnosticStatus, Statistics

LONGEST = 0.2


@pytest.fixture
def clock(monkeypatch):
    """Make a clock whose `now` moves by hand."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(diagnostics, 'time', clock)
    return clock


@pytest.fixture
def statistics(clock):
    return Statistics()


def judgement(statistics) -> tuple[bytes, str]:
    return statistics.take_report(LONGEST)[:2]


def test_a_slow_camera_is_no_silent_one(statistics, clock):
    """An image that came in an earlier window counts for as long as the next may take."""
    assert judgement(statistics) == (DiagnosticStatus.WARN, 'no image arrives')
    statistics.count_received()
    statistics.count_published(0.1, {})
    for _ in range(2):
        assert judgement(statistics) == (DiagnosticStatus.OK, 'running')
    clock.now += 1.01 * LONGEST
    assert judgement(statistics) == (DiagnosticStatus.WARN, 'no image arrives')


@pytest.mark.parametrize('done', [
    lambda statistics: statistics.count_published(0.1, {}), Statistics.count_unread],
    ids=['published', 'nobody reads'])
def test_images_of_which_nothing_comes(statistics, clock, done):
    for _ in range(3):
        statistics.count_received()
        assert judgement(statistics) == (DiagnosticStatus.OK, 'running')
        clock.now += 0.4 * LONGEST
    statistics.count_received()
    level, message = judgement(statistics)
    assert level == DiagnosticStatus.WARN and 'nothing has been published' in message
    done(statistics)
    statistics.count_received()
    assert judgement(statistics) == (DiagnosticStatus.OK, 'running')


def test_an_error_is_worse_than_silence(statistics):
    statistics.count_error('image', 'it is broken')
    assert judgement(statistics) == (DiagnosticStatus.ERROR, 'it is broken')


def test_a_report_is_of_its_own_window(statistics, clock):
    """Counts go on, rates, times and errors do not; an error is logged every five seconds."""
    statistics.take_report(LONGEST)
    for _ in range(4):
        statistics.count_received()
    for latency in (0.1, 0.2, 0.6):
        statistics.count_published(latency, {'network': latency / 2})
    due = [statistics.count_error(kind, text) for kind, text in (
        ('image', 'first'), ('image', 'second'), ('frame', 'third'))]
    assert due == [True, False, True]
    clock.now += 2.0
    level, message, values = statistics.take_report(LONGEST)
    assert (level, message) == (DiagnosticStatus.ERROR, 'third')
    assert values == {
        'images received': '4', 'frames published': '3', 'input rate (Hz)': '2.00',
        'output rate (Hz)': '1.50', 'latency (ms)': '200.0', 'network (ms)': '100.0',
        'errors: image': '2', 'errors: frame': '1', 'last error': 'third'}
    statistics.count_received()
    statistics.count_published(0.1, {})
    clock.now += 4.0
    level, _, values = statistics.take_report(longest=10.0)
    assert level == DiagnosticStatus.OK
    assert (values['images received'], values['input rate (Hz)']) == ('5', '0.25')
    assert values['errors: image'] == '2' and 'network (ms)' not in values
    assert statistics.count_error('image', 'again'), 'six seconds after the one that was logged'
