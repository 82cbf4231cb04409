# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""What the diagnostics make of what comes and goes."""

import time

import pytest

pytest.importorskip('diagnostic_msgs', reason='the node needs the ROS message packages')

from mtan_perception.node.diagnostics import DiagnosticStatus, Statistics

LONGEST = 0.2


@pytest.fixture
def statistics():
    return Statistics()


def judgement(statistics) -> tuple[bytes, str]:
    return statistics.take_report(LONGEST)[:2]


def test_a_slow_camera_is_no_silent_one(statistics):
    """An image that came in an earlier window counts for as long as the next may take."""
    assert judgement(statistics) == (DiagnosticStatus.WARN, 'no image arrives')
    statistics.count_received()
    statistics.count_published(0.1, {})
    for _ in range(2):
        assert judgement(statistics) == (DiagnosticStatus.OK, 'running')
    time.sleep(LONGEST)
    assert judgement(statistics) == (DiagnosticStatus.WARN, 'no image arrives')


@pytest.mark.parametrize('done', [
    lambda statistics: statistics.count_published(0.1, {}), Statistics.count_unread],
    ids=['published', 'nobody reads'])
def test_images_of_which_nothing_comes(statistics, done):
    for _ in range(3):
        statistics.count_received()
        assert judgement(statistics) == (DiagnosticStatus.OK, 'running')
        time.sleep(0.4 * LONGEST)
    statistics.count_received()
    level, message = judgement(statistics)
    assert level == DiagnosticStatus.WARN and 'nothing has been published' in message
    done(statistics)
    statistics.count_received()
    assert judgement(statistics) == (DiagnosticStatus.OK, 'running')


def test_an_error_is_worse_than_silence(statistics):
    statistics.count_error('image', 'it is broken')
    assert judgement(statistics) == (DiagnosticStatus.ERROR, 'it is broken')
