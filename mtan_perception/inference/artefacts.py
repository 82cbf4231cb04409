# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Compiled artefacts kept between starts: built once for each key, whole or not at all."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, ExitStack, suppress
import fcntl
import hashlib
import json
import logging
import os
from pathlib import Path
import shutil
import tempfile
import time

import mtan_perception

_LOGGER = logging.getLogger(__name__)
NETWORK_SOURCES = ('checkpoint.py', 'geometry.py', 'model_card.py', 'tasks.py', 'network/*.py',
                   'inference/*.py')
"""What the network depends on that is written in a runtime's format: see `code_hash`."""

_PACKAGE = Path(mtan_perception.__file__).parent

# Most hold the network's weights: keep the last few used of each name.
_MAX_ARTEFACTS = 8
_NOTE = 'key.json'
_BUILDING = '.building-'
_LOCK = 'lock'
_MAX_BUILDING = 3600.0
"""Seconds after which whoever was building, without a lock, is taken to have been killed."""
_MAX_UNLOCKED = 10.0
"""Seconds that a lock may take to come."""


def artefact_folder() -> Path:
    """
    Return $MTAN_CACHE, or mtan_perception in the user's cache folder.

    :returns: an absolute path, for processes in other folders, too.
    :raises OSError: if neither the environment nor the system names a home folder.
    """
    own = os.environ.get('MTAN_CACHE')
    try:
        if own:
            return Path(own).expanduser().absolute()  # a unit file has no shell that would
        cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    except RuntimeError as error:
        raise OSError(f'no folder for it: {error}') from None
    return Path(cache).absolute() / 'mtan_perception'


def file_hash(*paths: Path) -> str:
    """Return a hash of the files' content."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    for path in paths:
        with open(path, 'rb') as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:32]


def code_hash(*patterns: str) -> str:
    """
    Return a hash of sources, of which a development version has many.

    :param patterns: below the package, as Path.glob takes them.
    """
    return file_hash(*sorted({path for pattern in patterns for path in _PACKAGE.glob(pattern)}))


def provide(name: str, key: Mapping[str, str], build: Callable[[Path], None]) -> Path:
    """
    Return a file that `build` made for this key, now or at an earlier start.

    :param name: of the file.
    :param key: all that the content depends on: weights, versions, device, size, tasks.
    :param build: writes the file, and others beside it if it likes; it may take long, so a log
        line announces it.
    :raises OSError: if the folder cannot be written.

    A file of another key, or not the one that was written, is built anew, with a log line.
    """
    entry = artefact_folder() / hashlib.blake2b(
        json.dumps([name, key], sort_keys=True).encode(), digest_size=12).hexdigest()
    path = entry / name
    fault = _fault(entry, key)
    if fault is None:
        _LOGGER.debug('cache: %s', path)
        with suppress(OSError):  # somebody else's file serves as well
            os.utime(entry)
            _forget(entry.parent, name)
        return path
    if entry.exists():
        _LOGGER.warning('cache: %s %s; building it anew', path, fault)
    _LOGGER.info('building %s ...', name)
    _LOGGER.debug('%s: %s', name, ', '.join(f'{part} {value}' for part, value in key.items()))
    start = time.perf_counter()
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=_BUILDING))
    try:
        with _locked(temporary):
            build(temporary / name)
        (temporary / _NOTE).write_text(json.dumps({'key': dict(key), 'hashes': {
            path.name: file_hash(path) for path in temporary.iterdir()}}))
        _put(temporary, entry, key)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _LOGGER.info('built %s in %.1f s', path, time.perf_counter() - start)
    _forget(entry.parent, name)
    return path


def _put(folder: Path, entry: Path, key: Mapping[str, str]) -> None:
    """Put what was built in its place, unless another process has put the same there."""
    try:
        os.replace(folder, entry)
    except OSError:
        # Never removed unseen: whoever was faster may be reading it.
        if _fault(entry, key) is None:
            return
        shutil.rmtree(entry, ignore_errors=True)
        try:
            os.replace(folder, entry)
        except OSError:
            if _fault(entry, key) is not None:
                raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock in a folder, which ends with this process at the latest."""
    path = folder / _LOCK
    with open(path, 'wb') as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink()


@contextmanager
def provided(name: str, key: Mapping[str, str], build: Callable[[Path], None]) -> Iterator[Path]:
    """
    Give the file that `provide` returns; where none can be kept, one for this once.

    :raises OSError: if that cannot be written, either.
    """
    with ExitStack() as stack:
        try:
            path = provide(name, key, build)
        except OSError as error:
            _LOGGER.warning('cache: %s; the next start will have to build the model again: give '
                            '$MTAN_CACHE a folder that can be written, with enough space', error)
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='mtan-'))) / name
            build(path)
        yield path


def _fault(entry: Path, key: Mapping[str, str]) -> str | None:
    """Return what is wrong with kept files, None if they are those that were written."""
    try:
        note = json.loads((entry / _NOTE).read_text())
        if note['key'] != dict(key):
            return 'was written for something else'
        is_whole = all(file_hash(entry / name) == digest
                       for name, digest in note['hashes'].items())
        return None if is_whole else 'is damaged'
    except (AttributeError, OSError, ValueError, KeyError, TypeError) as error:
        return f'cannot be read ({type(error).__name__}: {error})'


def _forget(folder: Path, name: str) -> None:
    """Remove those not used for longest, and what killed processes have left half built."""
    used, abandoned = {}, []
    for path in folder.iterdir():
        with suppress(OSError):  # another process may be removing it
            if path.name.startswith(_BUILDING):
                abandoned += [path] * _is_abandoned(path)
            elif (path / _NOTE).is_file() and (path / name).is_file():  # all else is not ours
                used[path] = path.stat().st_mtime
    for path in [*sorted(used, key=used.__getitem__)[:-_MAX_ARTEFACTS], *abandoned]:
        shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Tell whether nobody builds in a folder any more."""
    age = time.time() - folder.stat().st_mtime
    try:
        with open(folder / _LOCK, 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return age > _MAX_UNLOCKED
    except OSError as error:  # it is held; or there is none
        return not isinstance(error, BlockingIOError) and age > _MAX_BUILDING
