# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Child processes on a ROS domain of their own, for the demo and the process-level tests."""

from collections import deque
from collections.abc import Iterable, Mapping
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from mtan_perception.node.process import fastdds_environment
from mtan_perception.processes import end_with_parent

# Above 101 the ports of a domain reach into Linux's ephemeral range.
DOMAIN_IDS = range(1, 102)
_PARTICIPANTS = 10
"""A process has one; so many are looked for."""


def free_domain_id() -> int:
    """
    Return a ROS_DOMAIN_ID in 1..101 on which nothing on this machine speaks DDS.

    A domain counts as free when the unicast discovery ports of its first participants are free
    (DDSI-RTPS 9.6.1.1): the very first may have ended before the others. The search starts at the
    process id, so that processes started together rarely meet.
    """
    first = os.getpid()
    for offset in range(len(DOMAIN_IDS)):
        domain_id = DOMAIN_IDS[(first + offset) % len(DOMAIN_IDS)]
        ports = (7410 + 250 * domain_id + 2 * number for number in range(_PARTICIPANTS))
        if all(map(_is_free, ports)):
            return domain_id
    raise RuntimeError('every ROS_DOMAIN_ID from 1 to 101 is in use; set ROS_DOMAIN_ID yourself')


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(('', port))
        except OSError:
            return False
    return True


def ros_environment(domain_id: int) -> dict[str, str]:
    """Return the variables that keep a process on this machine and in this domain."""
    variables = {
        'ROS_DOMAIN_ID': str(domain_id),
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'PYTHONUNBUFFERED': '1',
    }
    if os.environ.get('ROS_DISTRO') == 'humble':  # knows only this one; later ones warn about it
        variables['ROS_LOCALHOST_ONLY'] = '1'
    return variables | fastdds_environment()


class ChildProcess:
    """
    A Python module running as a child process, its output (stdout and stderr) kept by line.

    The child gets a session of its own: a Ctrl-C in the terminal reaches only the parent, which
    ends its children in order. Should the parent be killed, Linux ends the child. `env` is added
    to this process's environment.
    """

    def __init__(self, module: str, *args: str, env: Mapping[str, str] | None = None) -> None:
        self.name = module.rpartition('.')[2]
        self.lines: deque[str] = deque(maxlen=2000)
        self._process = subprocess.Popen(
            [sys.executable, '-m', module, *args], env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors='replace', start_new_session=True,
            preexec_fn=end_with_parent)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self.lines.append(line.rstrip('\n'))

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Return the exit code (negative: killed by that signal), None while it runs."""
        return self._process.poll()

    @property
    def output(self) -> str:
        """Return what the child has printed so far (its last 2000 lines)."""
        return '\n'.join(list(self.lines))

    def last_lines(self, count: int = 15) -> str:
        """Return its last lines, marked as such, for the message of an error."""
        return '\n'.join(f'  | {line}' for line in list(self.lines)[-count:]) or '  (none)'

    def failure(self) -> str | None:
        """Return why it does not do its work, with its last lines; None where it may."""
        if self.exit_code is not None:
            self.wait(1.0)  # for its last lines
            what = f'ended by itself with exit code {self.exit_code}'
        elif any('cannot configure' in line for line in list(self.lines)):
            what = 'cannot start'  # and waits for another value
        else:
            return None
        return f'{self.name} {what}; its last lines:\n{self.last_lines()}'

    def send_signal(self, number: int) -> None:
        """Send a signal to the child, by its id; nothing happens when it has already ended."""
        self._process.send_signal(number)

    def wait(self, timeout: float) -> int | None:
        """Wait at most `timeout` seconds and return the exit code, None when it still runs."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(1.0)  # the last lines
        return code

    def wait_for_line(self, text: str, timeout: float) -> str | None:
        """Return the first line that holds `text`; None when none came in `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self.exit_code is not None and not self._reader.is_alive()
            for line in list(self.lines):
                if text in line:
                    return line
            if ended or time.monotonic() > deadline:
                return None
            time.sleep(0.02)

    def stop(self, patience: float = 3.0) -> int:
        """End the child (SIGINT, `patience` seconds later SIGTERM, SIGKILL); return its code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self.send_signal(number)
            code = self.wait(patience)
            if code is not None:
                return code
        self.send_signal(signal.SIGKILL)
        return self.wait(patience)


def stop_all(children: Iterable[ChildProcess], patience: float = 3.0) -> None:
    """End those that still run: all are asked at once, then each is waited for."""
    children = [child for child in children if child.exit_code is None]
    for child in children:
        child.send_signal(signal.SIGINT)
    for child in children:
        if child.wait(patience) is None:
            child.stop(patience)
