# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The perception node: an image in; segmentation, depth and normals out.

image topic -> callback keeps the newest -> worker thread: decode, infer, fill, publish.
"""

from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
import sys
import time
from typing import NamedTuple

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
import numpy as np
from rcl_interfaces.msg import SetParametersResult
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.utilities import try_shutdown
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from mtan_perception.geometry import fit_image
from mtan_perception.node import parameters as parameter_table
from mtan_perception.node.diagnostics import diagnostic_array, Statistics
from mtan_perception.node.image_codec import decode_compressed, decode_image, ImageError
from mtan_perception.node.outputs import camera_info_fault, Outputs
from mtan_perception.node.process import leave, spin
from mtan_perception.node.worker import Worker
from mtan_perception.tasks import select_tasks

STOP_TIMEOUT = 1.0
"""How long an ending node waits for the frame in flight, in seconds."""
DIAGNOSTICS_PERIOD = 1.0


class Frame(NamedTuple):
    """An image message and when it arrived, in seconds of the monotonic clock."""

    message: Image | CompressedImage
    arrival: float


class MtanNode(LifecycleNode):
    """Lifecycle node around one inference engine."""

    def __init__(self, **kwargs):
        """
        Declare the parameters and create the publishers; no weights are loaded yet.

        :raises ValueError: for parameter values that are no choice or contradict one another.
        """
        super().__init__('mtan', **kwargs)
        self._settings = parameter_table.declare_parameters(self)
        self._statistics = Statistics()
        self._outputs = Outputs(self)
        self._engine = None
        self._palette: np.ndarray | None = None
        self._camera_info: CameraInfo | None = None
        self._input_subscriptions: list = []
        self._worker = Worker(self._process)
        self._worker.limit_rate(self._settings.max_rate)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 1)
        self.create_timer(DIAGNOSTICS_PERIOD, self._publish_diagnostics)
        # Last: the publishers' own qos_overrides parameters would come through it as well.
        self.add_on_set_parameters_callback(self._on_set_parameters)
        if self._settings.autostart:
            # From the executor, so that the node already answers while it is being configured.
            self._autostart_timer = self.create_timer(0.0, self._autostart)

    def close(self) -> None:
        """End the worker, unless the frame in flight takes too long."""
        self._worker.stop(STOP_TIMEOUT)

    def destroy_node(self) -> None:
        """Destroy the node; rclpy leaves the state machine, and with it the DDS participant."""
        super().destroy_node()
        self._state_machine.destroy_when_not_in_use()

    # -- Lifecycle ---------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """
        Load the weights, build the engine and run it once.

        SUCCESS -> inactive. FAILURE -> unconfigured, with the reason in the log: correct the
        parameter or the file and configure again.
        """
        try:
            self._engine = self._wait_for(self._worker.submit(self._build_engine))
        except ExternalShutdownException:
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.get_logger().error(f'cannot configure: {error}')
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """
        Subscribe to the inputs and let the outputs publish.

        SUCCESS -> active. FAILURE -> inactive, with the reason in the log.
        """
        try:
            self._subscribe()
        except Exception as error:
            self._unsubscribe()
            self.get_logger().error(f'cannot activate: {error}')
            return TransitionCallbackReturn.FAILURE
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; SUCCESS -> inactive. The frame in flight is not published."""
        self._unsubscribe()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the engine and its memory; SUCCESS -> unconfigured."""
        self._release_engine()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and free the engine; SUCCESS -> finalized."""
        self._unsubscribe()
        self._release_engine()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to where a configuration can start; SUCCESS -> unconfigured."""
        self._unsubscribe()
        self._release_engine()
        return TransitionCallbackReturn.SUCCESS

    def _autostart(self) -> None:
        self.destroy_timer(self._autostart_timer)
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def _build_engine(self):
        """Build and warm up the engine; runs on the worker, which owns the device from here on."""
        # Imported here, so that a missing torch is a failed transition with a remedy in the log.
        from mtan_perception.inference import Engine
        from mtan_perception.labels import generic
        settings = self._settings
        engine = Engine(settings.weights, settings.device, settings.precision)
        _apply_settings(engine, settings)
        engine.warm_up()
        self._palette = (engine.card.labels or generic(256)).palette()
        self.get_logger().info(
            f"weights '{settings.weights}' ({engine.card.backbone}, "
            f"{', '.join(engine.card.tasks)}) on {engine.device}, {engine.precision}")
        if engine.card.training.get('data') == 'synthetic':
            self.get_logger().warning(
                'these weights know rendered rooms only and are for trying out; docs/training.md '
                'says how to get weights for a real camera')
        return engine

    def _release_engine(self) -> None:
        self._engine = None

    def _wait_for(self, future: Future):
        """Wait for a job of the worker, but not beyond the end of ROS."""
        while True:
            try:
                return future.result(timeout=0.1)
            except FutureTimeoutError:
                if not self.context.ok():
                    raise ExternalShutdownException() from None

    # -- Inputs ------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        overrides = QoSOverridingOptions.with_default_policies()
        # Resolved first, so that remapping `image` carries over to its compressed transport.
        topic = self.resolve_topic_name('image')
        message_type = Image
        if self._settings.image_transport == 'compressed':
            topic, message_type = f'{topic}/compressed', CompressedImage
        qos = QoSProfile(
            depth=1, reliability=qos_profile_sensor_data.reliability,
            durability=qos_profile_sensor_data.durability)
        self._input_subscriptions = [
            self.create_subscription(
                message_type, topic, self._on_image, qos, qos_overriding_options=overrides),
            self.create_subscription(
                CameraInfo, 'camera_info', self._on_camera_info, qos_profile_sensor_data,
                qos_overriding_options=overrides),
        ]
        self._image_topic, self._camera_info_topic = (
            subscription.topic_name for subscription in self._input_subscriptions)

    def _unsubscribe(self) -> None:
        for subscription in self._input_subscriptions:
            self.destroy_subscription(subscription)
        self._input_subscriptions = []
        self._camera_info = None
        self._worker.clear()

    def _on_image(self, message: Image | CompressedImage) -> None:
        self._statistics.count_received()
        self._worker.offer(Frame(message, time.monotonic()))

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_info = message

    # -- One frame, on the worker ------------------------------------------------------------

    def _process(self, frame: Frame) -> None:
        """Take one frame from message to messages; whatever goes wrong, the next one is taken."""
        engine, settings = self._engine, self._settings
        if engine is None:
            return
        try:
            self._process_frame(frame, engine, settings)
        except ImageError as error:
            self._report_error('image', f"topic '{self._image_topic}': {error}")
        except Exception as error:
            # Publishers fail while ROS is being shut down; that is not worth a word.
            if self.context.ok():
                self._report_error('inference', f'{type(error).__name__}: {error}')

    def _process_frame(self, frame: Frame, engine, settings) -> None:
        tasks = self._outputs.wanted_tasks() & set(settings.tasks)
        header, start = frame.message.header, time.monotonic()
        compressed = isinstance(frame.message, CompressedImage)
        image = decode_compressed(frame.message) if compressed else decode_image(frame.message)
        stages = {'wait': start - frame.arrival, 'decode': time.monotonic() - start}
        camera_info = self._fitting_camera_info(image.shape[:2])
        if camera_info is not None:
            fit = fit_image(image.shape[:2], settings.input_size)
            self._outputs.publish_camera_info(header, camera_info, fit)
        if not tasks:
            return
        _apply_settings(engine, settings)
        focal_length = None if camera_info is None else camera_info.k[0]
        prediction = engine.infer(image, tasks, focal_length)
        start = time.monotonic()
        self._outputs.publish_images(prediction, tasks, header, settings, self._palette)
        now = time.monotonic()
        stages |= prediction.timings | {'publish': now - start}
        self._statistics.count_published(now - frame.arrival, stages)

    def _fitting_camera_info(self, image_size: tuple[int, int]) -> CameraInfo | None:
        """Return the newest CameraInfo if it belongs to images of this size."""
        camera_info = self._camera_info
        if camera_info is None:
            return None
        fault = camera_info_fault(camera_info, image_size)
        if fault:
            self._report_error('camera_info', f"topic '{self._camera_info_topic}': {fault}")
            return None
        return camera_info

    def _report_error(self, kind: str, text: str) -> None:
        if self._statistics.count_error(kind, text):
            self.get_logger().error(text)

    # -- Parameters and diagnostics ----------------------------------------------------------

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Take over a set of values as a whole, or refuse it with the reason."""
        try:
            self._check_state_allows(parameters)
            settings = self._settings.updated(parameters)
            if self._engine is not None:
                select_tasks(settings.tasks, self._engine.card.tasks)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self._settings = settings
        self._worker.limit_rate(settings.max_rate)
        return SetParametersResult(successful=True)

    def _check_state_allows(self, parameters: list[Parameter]) -> None:
        name = self.get_fully_qualified_name()
        for when, allowed, transitions in (
            (parameter_table.UNCONFIGURED, self._engine is None, 'deactivate` and `cleanup'),
            (parameter_table.INACTIVE, not self._input_subscriptions, 'deactivate'),
        ):
            refused = parameter_table.changes(parameters, when)
            if refused and not allowed:
                raise ValueError(
                    f"{', '.join(refused)} {when}: call the transition(s) `{transitions}` first "
                    f'(ros2 lifecycle set {name} ...)')

    def _publish_diagnostics(self) -> None:
        level, message, values = self._statistics.take_report()
        engine, settings = self._engine, self._settings
        if not self._input_subscriptions:
            level, message = DiagnosticStatus.OK, 'not active'
        values |= {
            'frames dropped for newer ones': str(self._worker.dropped),
            'weights': settings.weights,
            'tasks': ', '.join(settings.tasks),
            'tasks with a subscriber': ', '.join(sorted(self._outputs.wanted_tasks())),
            'input size': f'{settings.input_width}×{settings.input_height}',
        }
        if engine is not None:
            values |= {'device': str(engine.device), 'precision': str(engine.precision)}
        self._diagnostics.publish(diagnostic_array(
            self.get_clock().now().to_msg(), f'{self.get_name()}: inference',
            values.get('device', ''), level, message, values))


def _apply_settings(engine, settings) -> None:
    """Hand the live parameters to the engine."""
    engine.tasks = settings.tasks
    engine.input_size = settings.input_size
    engine.depth_range = settings.min_depth, settings.max_depth
    engine.confidence_threshold = settings.confidence_threshold


def main(args: list[str] | None = None) -> int:
    """
    Run the node until SIGINT or SIGTERM, then end the process with exit code 0.

    :returns: 1, where the node could not start, with the reason on stderr.
    """
    rclpy.init(args=args)
    try:
        node = MtanNode()
    except Exception as error:
        if not rclpy.ok():  # A signal came first.
            return 0
        print(f'mtan_node: cannot start: {error}', file=sys.stderr)
        try_shutdown()
        return 1
    spin(node)
    leave(node)


if __name__ == '__main__':
    sys.exit(main())
