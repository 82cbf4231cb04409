# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The worker thread and the slot for the newest frame."""

from itertools import pairwise
import threading
import time
import weakref

import pytest

from mtan_perception.node.worker import Worker


class Recorder:
    """Processes what is taken at one time, each only when it is let through."""

    def __init__(self):
        self.frames, self.rounds, self.times, self.threads = [], [], [], set()
        self.gate, self.entered = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, frames):
        self.frames += frames
        self.rounds.append(frames)
        self.times.append(time.monotonic())
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.gate.acquire(timeout=5)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def worker(recorder):
    worker = Worker(recorder)
    yield worker
    recorder.gate.release(1000)
    assert worker.stop(timeout=5)


def test_only_the_newest_frame_is_kept(worker, recorder):
    worker.offer(0)
    assert recorder.entered.acquire(timeout=5)
    for frame in range(1, 10):
        worker.offer(frame)
    recorder.gate.release()
    assert recorder.entered.acquire(timeout=5)
    assert recorder.frames == [0, 9]
    assert worker.dropped() == 8


def test_whoever_offers_while_it_is_busy_does_not_wait(worker, recorder):
    worker.offer(0)
    assert recorder.entered.acquire(timeout=5)
    start = time.monotonic()
    for frame in range(100):
        worker.offer(frame)
    assert time.monotonic() - start < 0.25  # 100 waits would be 0.3


def test_a_fast_slot_never_keeps_another_waiting(worker, recorder):
    """What waits in all slots is taken together, the newest of each."""
    worker.offer('front 0', 'front')
    assert recorder.entered.acquire(timeout=5)
    worker.offer('left 0', 'left')
    for number in range(1, 10):
        worker.offer(f'front {number}', 'front')
    recorder.gate.release()
    assert recorder.entered.acquire(timeout=5)
    worker.offer('front 10', 'front')
    recorder.gate.release()
    assert recorder.entered.acquire(timeout=5)
    assert recorder.rounds == [['front 0'], ['left 0', 'front 9'], ['front 10']]
    assert (worker.dropped('front'), worker.dropped('left')) == (8, 0)


def test_jobs_share_the_thread_and_come_before_frames(worker, recorder):
    worker.offer('first')
    assert recorder.entered.acquire(timeout=5)
    worker.offer('second')
    job = worker.submit(lambda: (threading.get_ident(), list(recorder.frames)))
    recorder.gate.release()
    thread, frames_before = job.result(timeout=5)
    assert frames_before == ['first']
    assert recorder.threads == {thread}


def test_a_job_hands_over_its_error_and_the_thread_goes_on(worker):
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 / 0).result(timeout=5)
    assert worker.submit(lambda: 'alive').result(timeout=5) == 'alive'


def test_a_finished_job_is_not_kept(worker):
    future = worker.submit(Recorder)
    gone = weakref.ref(future.result(timeout=5))
    del future
    end = time.monotonic() + 5
    while gone() is not None and time.monotonic() < end:
        time.sleep(0.01)
    assert gone() is None


def test_a_frame_given_back_is_taken_again_unless_a_newer_one_has_come(worker, recorder):
    worker.offer('first')
    assert recorder.entered.acquire(timeout=5)
    worker.give_back('first')
    recorder.gate.release()
    assert recorder.entered.acquire(timeout=5)
    worker.offer('second')
    worker.give_back('first')
    recorder.gate.release()
    assert recorder.entered.acquire(timeout=5)
    assert recorder.frames == ['first', 'first', 'second'] and worker.dropped() == 1


def test_a_cleared_frame_is_not_processed(worker, recorder):
    worker.limit_rate(1.0)
    for frame in ('first', 'second'):
        worker.offer(frame)
        if frame == 'first':
            assert recorder.entered.acquire(timeout=5)
            recorder.gate.release()
    worker.clear()
    assert not recorder.entered.acquire(timeout=1.2)
    assert recorder.frames == ['first']


def test_the_rate_is_limited_and_the_newest_frame_is_still_the_one_taken(worker, recorder):
    recorder.gate.release(1000)
    worker.limit_rate(20.0)
    end, frame = time.monotonic() + 0.6, 0
    while time.monotonic() < end:
        worker.offer(frame := frame + 1)
        time.sleep(0.002)
    assert 9 <= len(recorder.frames) <= 13
    gaps = [b - a for a, b in pairwise(recorder.times)]
    assert sorted(gaps)[len(gaps) // 2] == pytest.approx(0.05, abs=0.015)
    assert recorder.frames[-1] - recorder.frames[-2] > 5


def test_a_limit_holds_nothing_back_before_the_first_frame_and_nobody_up(worker, recorder):
    """However long a period is: longer than the machine runs, or than a thread may wait."""
    recorder.gate.release(1000)
    worker.limit_rate(1e-12)
    worker.offer(0)
    assert recorder.entered.acquire(timeout=5)
    start = time.monotonic()
    for frame in range(1, 101):
        worker.offer(frame)
    assert time.monotonic() - start < 0.25  # 100 waits would be 0.3
    assert not recorder.entered.acquire(timeout=0.2)
    worker.limit_rate(0.0)
    assert recorder.entered.acquire(timeout=5)
    assert recorder.frames == [0, 100]


def test_lifting_the_limit_takes_effect_on_a_waiting_frame(worker, recorder):
    recorder.gate.release(1000)
    worker.limit_rate(0.05)
    worker.offer('first')
    assert recorder.entered.acquire(timeout=5)
    worker.offer('second')
    assert not recorder.entered.acquire(timeout=0.1)
    worker.limit_rate(0.0)
    assert recorder.entered.acquire(timeout=1)


def test_stop_tells_whether_the_frame_in_flight_ended():
    recorder = Recorder()
    worker = Worker(recorder)
    worker.offer('long')
    assert recorder.entered.acquire(timeout=5)
    assert not worker.stop(timeout=0.05)
    recorder.gate.release()
    assert worker.stop(timeout=5)


def test_jobs_are_run_in_their_order(worker, recorder):
    worker.offer('frame')
    assert recorder.entered.acquire(timeout=5)
    ran = []
    jobs = [worker.submit(lambda number=number: ran.append(number)) for number in range(3)]
    recorder.gate.release()
    for job in jobs:
        job.result(timeout=5)
    assert ran == [0, 1, 2]
