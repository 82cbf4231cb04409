# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Where camera_node's frames come from: a camera, a video, images or a synthetic room. No ROS."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import functools
import math
from pathlib import Path
import re
import threading
import time

import cv2
import numpy as np

from mtan_perception.files import IMAGE_SUFFIXES, list_pictures, read_picture
from mtan_perception.threads import usable_cores

SYNTHETIC_SIZE = (384, 288)
DEFAULT_RATE = 10.0
"""Of what has none: images, and videos that do not tell."""


class SourceError(ValueError):
    """A source or a calibration that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True)
class Truth:
    """
    What a synthetic frame really shows.

    mask (H, W) uint8 class ids; depth (H, W) float32 metres along z; normal (H, W, 3) float32 unit
    vectors in the camera's optical frame, toward the camera.
    """

    mask: np.ndarray
    depth: np.ndarray
    normal: np.ndarray


@dataclass(frozen=True)
class Frame:
    """An image (H, W, 3) uint8 in `encoding`, with K (3, 3) and truth where the source knows."""

    image: np.ndarray
    encoding: str
    intrinsics: np.ndarray | None = None
    truth: Truth | None = None


@dataclass(frozen=True)
class SourceOptions:
    """
    How to read a source.

    width and height in pixels, 0 = the source's own; rate in Hz, 0 = the source's own; loop starts
    again at the end; seed and room_seconds are for the synthetic source.
    """

    width: int = 0
    height: int = 0
    rate: float = 0.0
    loop: bool = True
    seed: int = 0
    room_seconds: float = 20.0


@dataclass(frozen=True)
class Source:
    """
    An opened source.

    frames yields Frame and stops at the end of the source; rate in Hz is the pace at which to take
    them; a `live` source keeps the pace itself and its frames are to be used at once.
    """

    frames: Iterator[Frame]
    rate: float
    live: bool = False


def open_source(name: str, options: SourceOptions, stop: threading.Event,
                report: Callable[[str], None]) -> Source:
    """
    Open the source called `name`.

    `name` is 'synthetic', a camera (index, /dev/videoN or a URL that OpenCV reads), or the path of
    a video, an image or a folder of images (in the order of their names). `stop` ends every wait
    of a live source. `report` is called with what goes wrong along the way: an image that cannot
    be decoded, a camera that went away.

    Raises SourceError when there is nothing to read.
    """
    path = Path(name).expanduser()
    if name == 'synthetic':
        rate = options.rate or synthetic_rate()
        return Source(_synthetic_frames(options, rate), rate)
    if name.isdecimal() or name.startswith('/dev/video') or '://' in name:
        device = int(name) if name.isdecimal() else name
        return Source(camera_frames(device, options, stop, report), options.rate, live=True)
    if path.is_dir():
        paths = list_pictures(path)
        if not paths:
            raise SourceError(f"source '{name}': the folder holds no image "
                              f"({', '.join(sorted(IMAGE_SUFFIXES))})")
        return Source(_image_frames(paths, options, report), options.rate or DEFAULT_RATE)
    if not path.is_file():
        raise SourceError(f"source '{name}': no such file or folder; give 'synthetic', a camera "
                          'index, /dev/videoN, or the path of a video, image or folder of images')
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Source(_image_frames([path], options, report), options.rate or DEFAULT_RATE)
    return _open_video(path, options)


def synthetic_rate() -> float:
    """Return a rate in Hz at which rooms can be rendered beside a network on the same cores."""
    return float(min(5, usable_cores()))  # an image takes about half a second of one core


def synthetic_threads() -> int:
    """Return the threads that render rooms: half of the cores, the others are the network's."""
    return max(1, usable_cores() // 2)


def fit(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """
    Scale an image to width x height without stretching it: what is too much is cut off evenly.

    A width or height of 0 follows from the other one; both 0 leaves the image as it is.
    """
    own_height, own_width = image.shape[:2]
    width = width or max(1, round(own_width * height / own_height)) if height else width
    height = height or max(1, round(own_height * width / own_width)) if width else height
    if (width, height) in ((0, 0), (own_width, own_height)):
        return image
    scale = max(width / own_width, height / own_height)
    crop_width = min(own_width, round(width / scale))
    crop_height = min(own_height, round(height / scale))
    left, top = (own_width - crop_width) // 2, (own_height - crop_height) // 2
    image = image[top:top + crop_height, left:left + crop_width]
    # INTER_AREA averages when shrinking, so that fine structure does not alias.
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)


def _image_frames(paths: list[Path], options: SourceOptions,
                  report: Callable[[str], None]) -> Iterator[Frame]:
    """Yield the images in turn; one that cannot be decoded is reported once, then left out."""
    found = len(paths)
    read = functools.lru_cache(maxsize=1)(read_picture)  # the only one is read once
    while True:
        for path in tuple(paths):
            image = read(path)
            if image is None:
                paths.remove(path)
                report(f"source: '{path}' cannot be decoded and is skipped "
                       f'({found - len(paths)} of {found} images so far); replace or remove it')
            else:
                yield Frame(fit(image, options.width, options.height), 'bgr8')
        if not paths:
            raise SourceError(f'source: none of the {found} image(s) can be decoded')
        if not options.loop:
            return


def _open_video(path: Path, options: SourceOptions) -> Source:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise SourceError(f"source '{path}': OpenCV cannot read this as a video; "
                          'convert it, for example to H.264 in .mp4 or MJPG in .avi')
    own_rate = capture.get(cv2.CAP_PROP_FPS)
    if not (math.isfinite(own_rate) and own_rate > 0):
        own_rate = DEFAULT_RATE
    rate = min(options.rate or own_rate, own_rate)
    return Source(_video_frames(path, capture, own_rate / rate, options), rate)


def _video_frames(path: Path, capture: cv2.VideoCapture, step: float,
                  options: SourceOptions) -> Iterator[Frame]:
    """Yield every `step`-th frame (step >= 1), so that the video plays in its own time."""
    while True:
        read = yielded = 0
        while capture.grab():
            if read >= yielded * step:
                decoded, image = capture.retrieve()
                if not decoded:
                    break
                yielded += 1
                yield Frame(fit(image, options.width, options.height), 'bgr8')
            read += 1
        capture.release()
        if not yielded:
            raise SourceError(f"source '{path}': the video holds no frame that can be decoded")
        if not options.loop:
            return
        capture = cv2.VideoCapture(str(path))


def camera_frames(device: int | str, options: SourceOptions, stop: threading.Event,
                  report: Callable[[str], None],
                  open_capture: Callable = cv2.VideoCapture) -> Iterator[Frame]:
    """
    Yield a camera's newest frames, at most options.rate a second, until `stop` is set.

    A camera that is absent or goes away is reported and tried again, after 0.5 s at first and 10 s
    at most. `open_capture` makes the capture of a device.
    """
    wait = 0.5
    while not stop.is_set():
        capture = open_capture(device)
        if options.width and options.height:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, options.width)
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, options.height)
        due = time.monotonic()
        # Every frame is grabbed, so that none waits in the driver; only due ones are decoded.
        while not stop.is_set() and capture.isOpened() and capture.grab():
            if time.monotonic() < due:
                continue
            decoded, image = capture.retrieve()
            if not decoded:
                break
            wait = 0.5
            if options.rate:
                due = max(due + 1.0 / options.rate, time.monotonic() - 1.0 / options.rate)
            yield Frame(fit(image, options.width, options.height), 'bgr8')
        capture.release()
        if not stop.is_set():
            report(f"source: camera '{without_password(device)}' gives no images; "
                   f'{_remedy(device)}. Trying again in {wait:g} s')
            stop.wait(wait)
            wait = min(2 * wait, 10.0)


def without_password(source: int | str) -> str:
    """Return the source's name for a log, which others read."""
    return re.sub(r'(?<=://)[^/@]*@', '', str(source))


def _remedy(device: int | str) -> str:
    """Return what to do where a camera gives no images."""
    if '://' in str(device):
        return 'check its address, and that it can be reached from here'
    path = Path(f'/dev/video{device}' if isinstance(device, int) else device)
    if path.exists() or not Path('/dev').is_dir():
        return 'check that it is free, and that you may read it (group video)'
    found = sorted(map(str, path.parent.glob('video*')))
    return f'there is no {path} (found: {", ".join(found) or "none"}); plug it in'


def _synthetic_frames(options: SourceOptions, rate: float) -> Iterator[Frame]:
    """Yield a camera's drive through one random room after another, each for room_seconds."""
    from mtan_perception.synthetic import render  # torch: only this source needs it

    width = options.width or SYNTHETIC_SIZE[0]
    height = options.height or SYNTHETIC_SIZE[1]
    frames_per_room = max(1, round(options.room_seconds * rate))
    index = 0
    while True:
        room, frame = divmod(index, frames_per_room)
        if room and not options.loop:
            return
        rendered = render([options.seed + room], height, width, time=frame / rate)
        rgb = rendered.rgb[0].permute(1, 2, 0).mul(255.0).round().byte().contiguous()
        truth = Truth(rendered.label[0].byte().numpy(), rendered.depth[0, 0].contiguous().numpy(),
                      rendered.normal[0].permute(1, 2, 0).contiguous().numpy())
        yield Frame(rgb.numpy(), 'rgb8', rendered.intrinsics[0].numpy().astype(float), truth)
        index += 1


@dataclass(frozen=True)
class Calibration:
    """A camera's calibration: size in pixels, K and R (9), P (12) row by row, D and its model."""

    width: int
    height: int
    k: tuple[float, ...]
    d: tuple[float, ...]
    r: tuple[float, ...]
    p: tuple[float, ...]
    distortion_model: str = 'plumb_bob'


def pinhole(width: int, height: int, intrinsics: np.ndarray) -> Calibration:
    """Return the calibration of an ideal camera with the matrix K (3, 3)."""
    p = np.hstack([intrinsics, np.zeros((3, 1))])
    return Calibration(width, height, tuple(map(float, intrinsics.flat)), (0.0,) * 5,
                       tuple(map(float, np.eye(3).flat)), tuple(map(float, p.flat)))


def intrinsics_from_fov(width: int, height: int, hfov: float) -> np.ndarray:
    """Return K (3, 3) of a camera with square pixels and a horizontal view of `hfov` degrees."""
    focal_length = width / 2 / math.tan(math.radians(hfov) / 2)
    return np.array([[focal_length, 0, (width - 1) / 2], [0, focal_length, (height - 1) / 2],
                     [0, 0, 1]])


def read_calibration(url: str) -> Calibration:
    """
    Read a calibration in camera_info_manager's YAML format, from a path or a file:// URL.

    Raises SourceError, naming the file and the entry that is missing or wrong.
    """
    import yaml  # only this function needs it

    path = Path(url.removeprefix('file://')).expanduser()
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SourceError(f"camera_info_url '{url}': {error.strerror}; give the path of a "
                          'calibration file') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SourceError(f"camera_info_url '{url}': not a YAML file: {error}") from error
    entry = 'image_width'
    try:
        width = int(content[entry])
        entry = 'image_height'
        height = int(content[entry])
        matrices = []
        for entry, count in (('camera_matrix', 9), ('distortion_coefficients', None),
                             ('rectification_matrix', 9), ('projection_matrix', 12)):
            matrix = tuple(float(value) for value in content[entry]['data'])
            if count is not None and len(matrix) != count:
                raise ValueError(f'{len(matrix)} numbers instead of {count}')
            matrices.append(matrix)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"camera_info_url '{url}': '{entry}' is missing or wrong ({error}); the "
                          'format is what camera_calibration writes') from error
    k, d, r, p = matrices
    return Calibration(width, height, k, d, r, p, content.get('distortion_model', 'plumb_bob'))
