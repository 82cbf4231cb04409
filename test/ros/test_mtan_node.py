# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The perception node as a process of its own, over DDS."""

import array
from dataclasses import replace
from functools import partial
import importlib.util
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import cv2
from diagnostic_msgs.msg import DiagnosticStatus
import numpy as np
import pytest
from rcl_interfaces.srv import DescribeParameters
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from robot import camera_info, CAMERA_SIZE, MODULE, OUTPUT_SIZE, small, stamp
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2

from mtan_perception.checkpoint import build_network, save_checkpoint
from mtan_perception.model_card import COMPACT
from mtan_perception.node.image_codec import decode_image

README = Path(__file__).resolve().parents[2] / 'README.md'
# Every node of its kind has these.
STANDARD = {'/rosout', '/parameter_events', '/mtan/transition_event'}
IMAGES = {
    'segmentation/mask': ('mono8', 1),
    'segmentation/confidence': ('mono8', 1),
    'segmentation/color': ('rgb8', 3),
    'depth/image_rect': ('32FC1', 4),
    'depth/color': ('rgb8', 3),
    'normal/image': ('32FC3', 12),
    'normal/color': ('rgb8', 3),
}


def has(lines: list[str], found) -> bool:
    return any(map(found, list(lines)))


def shared_memory(pid: int) -> set[Path]:
    """Return the files of shared memory that Fast DDS (2: fastrtps_*) has mapped."""
    maps = Path(f'/proc/{pid}/maps').read_text().split()
    return {Path(word) for word in maps if word.startswith('/dev/shm/fast')}


def test_every_output_of_a_frame(robot, collect):
    images = {topic: collect(Image, f'/mtan/{topic}') for topic in IMAGES}
    infos = {task: collect(CameraInfo, f'/mtan/{task}/camera_info')
             for task in ('segmentation', 'depth', 'normal')}
    received = [*images.values(), *infos.values()]
    robot.start()
    robot.camera_info = camera_info()
    robot.send_until(lambda: all(received) and len({stamp(m[-1]) for m in received}) == 1)
    for messages in received:
        message = messages[-1]
        assert message.header.frame_id == 'front_optical'
        assert message.header.stamp.nanosec == 123456789
        assert (message.height, message.width) == OUTPUT_SIZE
    for topic, (encoding, pixel_bytes) in IMAGES.items():
        message = images[topic][-1]
        assert message.encoding == encoding
        assert message.step == OUTPUT_SIZE[1] * pixel_bytes, 'RViz ignores the step'
        assert len(message.data) == message.step * message.height
        assert not message.is_bigendian
    mask = np.frombuffer(images['segmentation/mask'][-1].data, np.uint8)
    assert ((mask < 13) | (mask == 255)).all()
    depth = np.frombuffer(images['depth/image_rect'][-1].data, np.float32)
    known = depth[np.isfinite(depth)]
    assert not np.isinf(depth).any() and ((known >= 0.1) & (known <= 10)).all()
    normals = np.frombuffer(images['normal/image'][-1].data, np.float32).reshape(-1, 3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-3)
    for (info,) in ([m[-1]] for m in infos.values()):
        np.testing.assert_allclose(info.k, [50, 0, 40, 0, 50, 30, 0, 0, 1])
        np.testing.assert_allclose(info.p, [50, 0, 40, 0, 0, 50, 30, 0, 0, 0, 1, 0])
        assert (info.roi.height, info.roi.width) == OUTPUT_SIZE


def topics_of_the_readme() -> dict[str, tuple[str, bool]]:
    """Return each topic's type, and whether late subscribers are served, by the README's table."""
    topics = {}
    for name, kind, rest in re.findall(
            r'^\| `((?:~|/)\S+)` \| (?:\w+/)?(\w+)(.*)', README.read_text(), re.MULTILINE):
        head, _, choices, tail = re.fullmatch(r'([^{]*)({([^}]*)})?(.*)', name).groups()
        for choice in (choices or '').split(','):
            topic = f'{head}{choice}{tail}'.replace('~', '/mtan')
            topics[topic] = (kind, 'transient local' in rest)
    return topics


def test_the_topics_are_those_of_the_readme(start_process, robot, spin_until):
    """By name, type and durability; all are reliable, which every subscriber matches."""
    expected = topics_of_the_readme()
    assert len(expected) > 10
    if importlib.util.find_spec('vision_msgs') is None:
        del expected['/mtan/segmentation/label_info']
    start_process(MODULE, *small(autostart=False))
    assert robot.state() == 'unconfigured'
    node, offered = robot.node, {}

    def compare():
        # Its services may be found before its name.
        if 'mtan' not in node.get_node_names():
            return False
        for topic, (kind,) in node.get_publisher_names_and_types_by_node('mtan', '/'):
            for publisher in node.get_publishers_info_by_topic(topic):
                assert publisher.qos_profile.reliability == ReliabilityPolicy.RELIABLE, topic
                offered[topic] = (kind.rpartition('/')[2], publisher.qos_profile.durability
                                  == DurabilityPolicy.TRANSIENT_LOCAL)
        return {topic: offered[topic] for topic in offered.keys() - STANDARD} == expected

    assert spin_until(compare), (offered, expected)


def test_no_subscriber_no_work(robot, collect, spin_until):
    robot.camera_info = camera_info()
    robot.start()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        robot.send()
        robot.pause(0.1)
    assert spin_until(lambda: robot.counts('images received', 5))
    assert robot.says('frames published', '^0$')
    robot.exchange(collect(CameraInfo, '/mtan/depth/camera_info'))
    robot.pause(1.5)
    assert robot.says('frames published', '^0$'), 'a CameraInfo alone needs no network'
    depth = collect(Image, '/mtan/depth/image_rect')
    robot.exchange(depth)
    assert spin_until(lambda: robot.says('tasks with a subscriber', '^depth$'))
    assert spin_until(lambda: robot.says('camera_info (ms)', '.'))
    assert not robot.says('camera_info (ms)', '-'), 'publishing counts for its own frame'
    mask = collect(Image, '/mtan/segmentation/mask')
    robot.exchange(mask)
    assert spin_until(lambda: robot.says('tasks with a subscriber', '^depth, segmentation$'))
    assert not robot.says('clouds (ms)', '.')
    robot.exchange(collect(PointCloud2, '/mtan/points'))
    assert spin_until(lambda: robot.says('clouds (ms)', '.'))


def test_live_parameters(robot, collect):
    mask = collect(Image, '/mtan/segmentation/mask')
    depth = collect(Image, '/mtan/depth/image_rect')
    robot.start()
    robot.exchange(mask)
    robot.exchange(depth)

    assert robot.set(tasks=['depth']).successful
    robot.exchange(depth)
    robot.pause(0.2)
    masks = len(mask)
    for _ in range(3):
        robot.exchange(depth)
    assert len(mask) == masks, 'a task that was switched off still publishes'

    assert robot.set(tasks=['depth', 'segmentation'], confidence_threshold=1.0).successful
    assert (np.frombuffer(robot.exchange(mask).data, np.uint8) == 255).all()
    assert robot.set(input_height=32, input_width=96, min_depth=90.0, max_depth=91.0).successful
    message = robot.exchange(depth)
    assert (message.height, message.width) == (32, 42), 'one scale for both axes'
    assert np.isnan(np.frombuffer(message.data, np.float32)).all()


def test_refused_parameters_change_nothing(robot, collect):
    depth = collect(Image, '/mtan/depth/image_rect')
    robot.start()
    for values, reason in [
        ({'weights': 'other.safetensors'}, 'weights.*first .*deactivate`, then .*/mtan cleanup`'),
        ({'device': 'cpu', 'precision': 'bf16'}, 'device, precision.*deactivate'),
        ({'backend': 'torch'}, 'backend'),
        ({'image_transport': 'compressed'}, 'image_transport.*deactivate'),
        ({'autostart': False}, 'read-only'),
        ({'input_height': 8}, 'input_height.*range'),
        ({'confidence_threshold': 1.5}, 'confidence_threshold.*range'),
        ({'tasks': ['depth', 'edges']}, 'edges.*segmentation, depth, normal'),
        ({'overlay_alpha': 1.0, 'min_depth': 20.0}, "'min_depth' is 20"),
    ]:
        result = robot.set(**values)
        assert not result.successful, values
        assert re.search(reason, result.reason), result.reason
    message = robot.exchange(depth)
    assert (message.height, message.width) == OUTPUT_SIZE


def test_parameters_are_described(start_process, robot):
    start_process(MODULE, *small(autostart=False))
    names = ['tasks', 'input_height', 'input_width', 'max_rate', 'confidence_threshold',
             'min_depth', 'max_depth', 'overlay_alpha', 'weights', 'device', 'precision',
             'backend', 'image_transport', 'autostart', 'cameras', 'points.stride',
             'points.classes', 'obstacles.base_frame', 'depth_scale']
    described = robot.call(
        DescribeParameters, '/mtan/describe_parameters',
        DescribeParameters.Request(names=names)).descriptors
    assert [descriptor.name for descriptor in described] == names
    assert all(len(descriptor.description) > 20 for descriptor in described)


def test_lifecycle_with_a_configuration_that_fails(start_process, robot, collect, tmp_path):
    missing = tmp_path / 'missing.safetensors'
    truncated = tmp_path / 'truncated.safetensors'
    truncated.write_bytes(b'\x10\x00\x00')
    child = start_process(MODULE, *small(autostart=False))
    assert robot.state() == 'unconfigured'
    robot.request_invalid_transition('activate')
    assert robot.state() == 'unconfigured', 'an invalid transition is refused and survived'
    for values, reason in [
        ({'weights': str(missing)}, 'missing.safetensors'),
        ({'weights': str(truncated)}, 'truncated.safetensors'),
        ({'weights': 'random', 'device': 'npu'}, 'device.*npu'),
        ({'device': 'auto', 'tasks': ['edges']}, 'edges'),
        ({'tasks': ['depth'], 'points.classes': ['flor']}, "points.classes.*'flor'.*floor"),
    ]:
        assert robot.set(**values).successful, values
        assert not robot.change('configure')
        assert robot.state() == 'unconfigured'
        # The answer may come before the line has been read.
        found = partial(re.search, f'cannot configure.*{reason}')
        assert robot.spin_until(partial(has, child.lines, found), 5), child.output
        robot.wait_for_status(DiagnosticStatus.ERROR, reason)
    assert robot.set(**{'points.classes': ['all']}).successful
    assert robot.change('configure') and robot.state() == 'inactive'
    robot.wait_for_status(DiagnosticStatus.OK, 'not active')
    depth = collect(Image, '/mtan/depth/image_rect')
    assert robot.images.get_subscription_count() == 0
    for _ in range(2):
        assert robot.change('activate') and robot.state() == 'active'
        robot.wait_until_active(child)
        robot.exchange(depth)
        assert robot.change('deactivate') and robot.state() == 'inactive'
    assert robot.set(image_transport='compressed').successful
    assert robot.set(weights='random', device='auto').successful, 'as they are'
    refusal = robot.set(weights='default')
    assert not refusal.successful, 'inactive, but an engine is there'
    assert refusal.reason.endswith('first `ros2 lifecycle set /mtan cleanup`')
    assert robot.change('cleanup') and robot.state() == 'unconfigured'
    assert robot.set(precision='fp32', image_transport='raw').successful
    assert robot.change('configure') and robot.change('activate')
    robot.wait_until_active(child)
    robot.exchange(depth)
    assert robot.change('deactivate') and robot.change('cleanup') and robot.change('shutdown')
    for line in ('inactive:', 'unconfigured:', 'finalized:'):
        assert robot.spin_until(partial(has, child.lines, partial(re.search, line)), 5), line


def test_the_newest_frame_under_a_fast_source(robot, spin_until):
    """At 60 Hz in and 10 Hz out every answer is to a frame of the last moment."""
    robot.start(max_rate=10.0)
    sent, latencies = {}, []
    robot.node.create_subscription(
        Image, '/mtan/depth/image_rect',
        lambda m: latencies.append(time.monotonic() - sent[stamp(m)]), 10)

    def send():
        sent[robot.count + 1001] = time.monotonic()
        robot.send()

    robot.node.create_timer(1 / 60, send)
    assert spin_until(lambda: latencies)
    latencies.clear()
    robot.pause(5.0)
    assert 10 <= len(latencies) <= 55
    # One frame waits at most until the next that is due (0.1 s) and is then processed.
    assert np.median(latencies) < 0.4
    assert np.median(latencies[-5:]) < np.median(latencies[:5]) + 0.2, 'latency grows'
    assert spin_until(lambda: robot.counts('frames dropped for newer ones', 50))


def test_what_a_camera_needs_is_built_before_its_first_answer(robot, collect, spin_until):
    """Not while frames wait: the newest at its end is the first to be taken."""
    pytest.importorskip('openvino')
    child = robot.start(backend='openvino')
    labels = collect(Image, '/mtan/segmentation/mask')
    assert spin_until(lambda: robot.says('tasks with a subscriber', 'segmentation'))
    assert child.output.count('openvino: built') == 1
    robot.image = np.zeros((72, 160, 3), np.uint8)  # not of the input size's proportions
    robot.node.create_timer(1 / 30, robot.send)
    assert spin_until(lambda: labels)
    assert child.output.count('openvino: built') == 2
    assert stamp(labels[0]) > 1001 and labels[0].height == 36


def test_what_changes_while_a_frame_is_in_the_network(robot, collect, spin_until):
    """A new reader gets the next one, with all that clouds need; an earlier activation none."""
    robot.camera_info = camera_info()
    child = robot.start(input_height=1024, input_width=1024, backend='torch')
    depth = collect(Image, '/mtan/depth/image_rect')
    robot.exchange(depth)
    # Nothing sent before must be in the network still: a busy machine takes seconds for a frame.
    assert spin_until(lambda: stamp(depth[-1]) == 1000 + robot.count)
    in_flight = robot.send()
    robot.pause(0.3)
    clouds = collect(PointCloud2, '/mtan/points')
    assert spin_until(lambda: stamp(depth[-1]) == in_flight)
    robot.pause(0.5)
    assert in_flight not in map(stamp, clouds)
    robot.exchange(clouds)
    in_flight = robot.send()
    robot.pause(0.1)
    assert robot.change('deactivate') and robot.change('activate')
    robot.wait_until_active(child)
    robot.exchange(depth)
    assert in_flight not in map(stamp, depth)


def test_tasks_that_have_no_topic_are_refused(robot, tmp_path):
    """Though the weights know them."""
    card = replace(COMPACT, tasks={'segmentation': 13, 'depth': 1, 'edges': 1})
    save_checkpoint(tmp_path / 'a.safetensors', build_network(card), card)
    robot.start(weights=tmp_path / 'a.safetensors', tasks='[segmentation]')
    refusal = robot.set(tasks=['segmentation', 'edges'])
    assert not refusal.successful and 'edges' in refusal.reason


def test_inverse_depth_is_refused(robot, start_process, tmp_path):
    """As of Cityscapes: what reads the topics takes it for metres."""
    card = replace(COMPACT, depth_unit='inverse')
    save_checkpoint(tmp_path / 'a.safetensors', build_network(card), card)
    start_process(MODULE, *small(autostart=False, weights=tmp_path / 'a.safetensors'))
    assert not robot.change('configure')
    robot.wait_for_status(DiagnosticStatus.ERROR, r'tasks.*inverse.*: \[segmentation, normal\]')
    assert robot.set(tasks=['segmentation', 'normal']).successful
    assert robot.change('configure')
    refusal = robot.set(tasks=['depth'])
    assert not refusal.successful and 'inverse' in refusal.reason


def test_an_activation_that_fails_leaves_nothing(start_process, robot):
    start_process(MODULE, *small(autostart=False),
                  '-p', 'qos_overrides./image.subscription.reliability:=sometimes')
    assert robot.change('configure')
    for _ in range(2):
        assert not robot.change('activate')
        robot.wait_for_status(DiagnosticStatus.ERROR, 'cannot activate: .')
    assert robot.spin_until(lambda: robot.camera_infos.get_subscription_count() == 0)


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='needs Linux')
def test_a_node_with_openvino_does_without_torch(robot, spin_until):
    """Which is 500 MiB in memory, and seconds at each start."""
    pytest.importorskip('openvino')
    child = robot.start(backend='openvino', device='cpu')
    assert spin_until(lambda: "by backend 'openvino'" in child.output)
    assert 'libtorch' not in Path(f'/proc/{child.pid}/maps').read_text()


def test_compressed_input(start_process, robot, collect, spin_until):
    """The remapping of `image` carries over to its compressed transport."""
    start_process(MODULE, *small(image_transport='compressed'), '-r', 'image:=/front/image_raw')
    publisher = robot.node.create_publisher(CompressedImage, '/front/image_raw/compressed', 1)
    assert spin_until(lambda: publisher.get_subscription_count() == 1, 60)
    publisher.publish(CompressedImage(header=robot.header(), format='jpeg'))
    assert spin_until(lambda: robot.counts('images received', 1))
    assert 'last error' not in robot.values(), 'what nobody reads is not decoded'
    color = collect(Image, '/mtan/segmentation/color')
    red = np.zeros((*CAMERA_SIZE, 3), np.uint8)
    red[..., 2] = 255
    data = array.array('B', cv2.imencode('.jpg', red)[1].tobytes())
    assert robot.set(overlay_alpha=0.0).successful

    def answered():
        publisher.publish(CompressedImage(
            header=robot.header(), format='rgb8; jpeg compressed bgr8', data=data[:200]))
        publisher.publish(CompressedImage(
            header=robot.header(), format='rgb8; jpeg compressed bgr8', data=data))
        spin_until(lambda: color, 1.0)
        return color

    assert spin_until(answered)
    np.testing.assert_allclose(decode_image(color[-1]).mean((0, 1)), [254, 0, 0], atol=3)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_node_cleanly(robot, collect, number):
    child = robot.start()
    robot.exchange(collect(Image, '/mtan/depth/image_rect'))
    robot.send()
    shared = shared_memory(child.pid) - shared_memory(os.getpid())
    start = time.monotonic()
    child.send_signal(number)
    assert child.wait(10) == 0
    assert time.monotonic() - start < 2
    left = [path for path in shared if path.exists()]
    assert not left, 'Fast DDS segments of tens of megabytes are left behind'
    assert 'Traceback' not in child.output


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_weights_are_loaded(start_process, number):
    """Nothing has to wait for them, and what the worker logs meanwhile is worth no alarm."""
    child = start_process(MODULE, *small())
    assert child.wait_for_line('loading weights', 30)
    child.send_signal(number)
    child.send_signal(number)  # as launch does after a Ctrl-C
    assert child.wait(10) == 0
    assert 'Failed' not in child.output and 'Traceback' not in child.output


MAKE = """
import os, signal
from rclpy.node import Node
from mtan_perception.node.process import leave, spin, start

class Told(Node):
    def __init__(self):
        super().__init__('told')
        os.kill(os.getpid(), signal.SIGTERM)
        maps = open('/proc/self/maps').read().split()
        print(*{word for word in maps if word.startswith('/dev/shm/fast')}, flush=True)

    def close(self):
        pass

node = start('told', Told, None, {})
spin(node)
leave(node)
"""


def test_a_signal_while_a_node_is_made_leaves_no_shared_memory(ros_domain):
    done = subprocess.run([sys.executable, '-c', MAKE], check=True, timeout=60,
                          capture_output=True, text=True)
    assert done.stderr == '' and done.stdout.strip()
    # A port may be another process's, too.
    assert not [path for path in done.stdout.split() if Path(path).exists() and 'port' not in path]


BAD_IMAGES = {
    'unknown encoding': ({'encoding': 'rgb10'}, "'rgb10'"),
    'zero size': ({'height': 0}, '160×0'),
    'short data': ({'data': array.array('B', bytes(100))}, 'data has 100 bytes'),
    'long data': ({'data': array.array('B', bytes(60000))}, 'data has 60000 bytes'),
    'short step': ({'step': 100}, 'step 100'),
    'NaN': ({'encoding': '32FC1', 'step': 640,
             'data': array.array('B', np.full(CAMERA_SIZE, np.nan, np.float32).tobytes())}, 'NaN'),
}


def test_bad_images_are_named_counted_and_survived(robot, collect, spin_until):
    depth = collect(Image, '/mtan/depth/image_rect')
    child = robot.start()
    robot.exchange(depth)
    errors = 0
    for fields, text in BAD_IMAGES.values():
        first = robot.send(**fields)
        errors += 1
        assert spin_until(lambda n=errors: robot.counts('errors: image', n))
        assert robot.says('last error', text)
        robot.exchange(depth)
        assert first not in {stamp(message) for message in depth}
    logged = [line for line in child.lines if "topic '/image'" in line]
    assert 1 <= len(logged) < len(BAD_IMAGES), 'errors are throttled, not silent'


def test_images_of_another_type_than_is_subscribed_to(start_process, robot):
    """The remedy is that, and not the middleware's."""
    robot.node.create_publisher(CompressedImage, '/front/image_raw/compressed', 1)
    robot.node.create_publisher(CameraInfo, '/odd', 1)
    compressed, image = (f'sensor_msgs/msg/{name}' for name in ('CompressedImage', 'Image'))
    topic = '/front/image_raw/compressed'
    children = [
        (start_process(MODULE, *small(image_transport=transport), '-r', f'image:={topic}'), text)
        for topic, transport, text in (
            (topic, 'raw', f"they publish {compressed}: set parameter 'image_transport' to "
             "'compressed' and remap image to '/front/image_raw'"),
            (topic, 'compressed', "0 publisher(s); remap image to '/front/image_raw': "
             "image_transport 'compressed' adds /compressed to it"),
            ('/odd', 'raw', f'they publish sensor_msgs/msg/CameraInfo, and {image} is needed'))]
    for child, text in children:
        assert text in (child.wait_for_line('no image has come', 60) or child.output)


def test_what_is_ignored_is_named(start_process):
    child = start_process(MODULE, 'max_rate:=5.0', *small(input_hight=480, nosuch=3))
    assert child.wait_for_line('active', 40)
    for text in ("parameter 'input_hight' is not known, so it is ignored; did you mean "
                 "'input_height'?", "parameter 'nosuch' is not known, so it is ignored",
                 'ignored: max_rate:=5.0; what is for ROS comes after --ros-args'):
        assert text in child.output
    assert child.output.count('is ignored') == 2


def test_camera_info_that_does_not_fit(robot, collect):
    depth = collect(Image, '/mtan/depth/image_rect')
    infos = collect(CameraInfo, '/mtan/depth/camera_info')
    child = robot.start()
    for fields, text in [({'height': 480, 'width': 640}, '640×480 differs from.*160×120'),
                         ({'focal': 0.0}, 'focal lengths in K are 0 and 0')]:
        robot.camera_info = camera_info(**fields)
        robot.send_until(lambda t=text: robot.says('last error', t))
        robot.exchange(depth)
    assert not infos
    assert child.wait_for_line("topic '/camera_info'", 1)
    robot.camera_info = camera_info()
    robot.exchange(infos)


def test_an_image_goes_with_the_camera_info_that_came_just_before_it(robot, collect, spin_until):
    """As from a zoom lens."""
    infos = collect(CameraInfo, '/mtan/depth/camera_info')
    robot.start()
    robot.camera_info = camera_info()
    robot.exchange(infos)
    for focal in range(60, 90):
        robot.camera_info = camera_info(focal=float(focal))
        sent = robot.send()
        assert spin_until(lambda s=sent: stamp(infos[-1]) == s, 5)
        assert infos[-1].k[0] == pytest.approx(focal / 2)


def test_a_start_with_a_parameter_file_that_is_not_there_ends_with_the_reason(start_process):
    child = start_process(MODULE, '--ros-args', '--params-file', '/nowhere.yaml')
    assert child.wait(30) == 1
    assert 'mtan_node: cannot start: ' in child.output and '/nowhere.yaml' in child.output
    assert 'Traceback' not in child.output


@pytest.mark.parametrize('arguments, text', [
    ({'input_height': 8}, 'input_height'),
    ({'precision': 'fp8'}, "'precision' is 'fp8'"),
    ({'tasks': 'depth'}, 'tasks'),
])
def test_a_start_with_a_wrong_parameter_ends_with_the_reason(start_process, arguments, text):
    child = start_process(MODULE, *small(**arguments))
    assert child.wait(30) == 1
    assert 'mtan_node: cannot start' in child.output and text in child.output
    assert 'Traceback' not in child.output


def test_qos_overrides(robot):
    robot.start(
        '-p', 'qos_overrides./image.subscription.reliability:=reliable',
        '-p', 'qos_overrides./mtan/depth/image_rect.publisher.reliability:=best_effort')
    (image,) = robot.node.get_subscriptions_info_by_topic('/image')
    assert image.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    (depth,) = robot.node.get_publishers_info_by_topic('/mtan/depth/image_rect')
    assert depth.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    (mask,) = robot.node.get_publishers_info_by_topic('/mtan/segmentation/mask')
    assert mask.qos_profile.reliability == ReliabilityPolicy.RELIABLE


def test_a_camera_info_that_was_published_once(start_process, robot, collect):
    """By a driver that keeps it for whoever comes later, which parameters ask for."""
    publisher = robot.node.create_publisher(CameraInfo, '/once', QoSProfile(
        depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    publisher.publish(camera_info())
    infos = collect(CameraInfo, '/mtan/depth/camera_info')
    start_process(MODULE, *small(), '-r', 'camera_info:=/once',
                  '-p', 'qos_overrides./once.subscription.durability:=transient_local',
                  '-p', 'qos_overrides./once.subscription.reliability:=reliable')
    assert robot.spin_until(lambda: robot.images.get_subscription_count(), 60)
    robot.exchange(infos)
