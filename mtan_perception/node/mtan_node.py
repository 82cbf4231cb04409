# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The perception node: an image in; segmentation, depth and normals out.

image topic -> callback keeps the newest -> worker thread: decode, infer, fill, publish. Several
cameras share the engine; what they have ready at one time goes through it together.
"""

from collections import deque
from concurrent.futures import Future, wait
from functools import partial
import gc
import sys

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter

from mtan_perception.inference.devices import free_unused_memory
from mtan_perception.labels import generic, LabelSet
from mtan_perception.node import parameters as parameter_table
from mtan_perception.node import programs
from mtan_perception.node.camera import Camera, Frame, Shot, SILENCE
from mtan_perception.node.clouds import select_classes
from mtan_perception.node.diagnostics import diagnostic_status
from mtan_perception.node.gravity import Gravity
from mtan_perception.node.label_topics import LabelTopics
from mtan_perception.node.obstacles import class_ids
from mtan_perception.node.process import forward_logs, leave, spin, start
from mtan_perception.node.worker import Worker
from mtan_perception.tasks import DEPTH, SEGMENTATION, select_tasks

STOP_TIMEOUT = 1.0
"""How long an ending node waits for the frame in flight, in seconds."""
DIAGNOSTICS_PERIOD = 1.0
_MAX_GIVEN_BACK = 64


class MtanNode(LifecycleNode):
    """Lifecycle node around one inference engine."""

    def __init__(self, **kwargs):
        """
        Declare the parameters and create the publishers; no weights are loaded yet.

        :raises ValueError: for parameter values that are no choice or contradict one another.
        """
        super().__init__('mtan', **kwargs)
        self._settings = parameter_table.declare_parameters(self)
        self._engine = None
        self._failure: str | None = None
        """Why the last transition failed, as long as none of its kind has succeeded since."""
        self._labels: LabelSet | None = None
        self._prepared: tuple | None = None
        """What the engine was last prepared for."""
        self._given_back: deque[tuple] = deque(maxlen=_MAX_GIVEN_BACK)
        """For what frames were given back: once, else a backend that cannot keep all for which
        frames come, and has to build them again and again, would never be given one."""
        self._worker = Worker(self._process)
        self._worker.limit_rate(self._settings.max_rate)
        gravity = Gravity(self)
        self._cameras = [
            Camera(self, name, self._worker.offer, gravity) for name in self._settings.cameras]
        self._label_topics = LabelTopics(self, SEGMENTATION)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 1)
        # By a clock that runs whether or not somebody publishes /clock.
        self.create_timer(DIAGNOSTICS_PERIOD, self._publish_diagnostics,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))
        # Last: the publishers' own qos_overrides parameters would come through it as well.
        self.add_on_set_parameters_callback(self._on_set_parameters)
        if self._settings.autostart:
            # From the executor: others find the node by then. What they ask it waits until it is
            # configured, but not what ends it.
            self._autostart_timer = self.create_timer(0.0, self._autostart)
        else:
            self.get_logger().info('unconfigured, as autostart is off; to go on: '
                                   f'ros2 lifecycle set {self.get_fully_qualified_name()} '
                                   'configure, then activate')

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
        self.get_logger().info(f"loading weights '{self._settings.weights}' ...")
        try:
            self._engine = self._wait_for(self._worker.submit(self._build_engine))
            self._describe_engine()
            self._warn_about_classes()
            self._failure = None
        except Exception as error:
            self._failure = f'cannot configure: {error}'
            self.get_logger().error(
                f'{self._failure}. The node stays unconfigured: correct the parameter '
                'or the file and start it again, or make the transitions `configure` and '
                f'`activate` (ros2 lifecycle set {self.get_fully_qualified_name()} ...)')
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """
        Subscribe to the inputs and let the outputs publish.

        SUCCESS -> active. FAILURE -> inactive, with the reason in the log.
        """
        try:
            for camera in self._cameras:
                camera.subscribe(self._settings.image_transport)
            result = super().on_activate(state)
            self._publish_labels()
        except Exception as error:
            self._unsubscribe()
            super().on_deactivate(state)
            self._failure = f'cannot activate: {error}'
            self.get_logger().error(self._failure)
            return TransitionCallbackReturn.FAILURE
        self._failure = None
        self.get_logger().info(
            f"active, waiting for images on {', '.join(c.image_topic for c in self._cameras)}")
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; SUCCESS -> inactive. The frame in flight is not published."""
        self._unsubscribe()
        self.get_logger().info('inactive: no image is taken')
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the engine and its memory; SUCCESS -> unconfigured."""
        self._release_engine()
        self.get_logger().info('unconfigured: the weights are released')
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and free the engine; SUCCESS -> finalized."""
        self._unsubscribe()
        self._release_engine()
        self.get_logger().info('finalized: to go on, end this process and start it again')
        return super().on_deactivate(state)  # the publishers

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to where a configuration can start; SUCCESS -> unconfigured."""
        # What was raised rclpy keeps to itself.
        self._failure = 'a transition failed; to go on: configure, then activate'
        self.get_logger().error(self._failure)
        self._unsubscribe()
        self._release_engine()
        return super().on_deactivate(state)  # the publishers

    def _autostart(self) -> None:
        self.destroy_timer(self._autostart_timer)
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def _build_engine(self):
        """Build and warm up the engine; runs on the worker, which owns the device from here on."""
        # Imported here, so that a missing torch is a failed transition with a remedy in the log.
        from mtan_perception.inference import Engine
        settings = self._settings
        engine = Engine(settings.weights, settings.device, settings.precision,
                        backend=settings.backend)
        _check_tasks(settings, engine)
        labels = engine.card.labels or generic(1)  # Without segmentation no pixel has a class.
        _check_classes(settings, labels)
        _apply_settings(engine, settings)
        engine.warm_up()
        self._labels, self._prepared = labels, None
        self._given_back.clear()
        return engine

    def _warn_about_classes(self) -> None:
        """Say so where no class is floor: obstacles then stand on what is low and level."""
        wanted = self._settings.obstacles_floor_classes
        if SEGMENTATION in self._engine.card.tasks and not class_ids(
                wanted, self._labels.names).any():
            self.get_logger().warning(
                f"parameter 'obstacles.floor_classes': none of {', '.join(wanted)} is a class of "
                'these weights, so floor is told by its height and normals alone; choose from '
                f"{', '.join(self._labels.names)}")

    def _describe_engine(self) -> None:
        engine = self._engine
        self.get_logger().info(
            f"weights '{self._settings.weights}' ({engine.card.backbone}, "
            f"{', '.join(engine.card.tasks)}) on {engine.device}, {engine.precision}, by backend "
            f"'{engine.backend}'")
        if engine.card.is_synthetic:
            self.get_logger().warning(
                'these weights know rendered rooms only and are for trying out; docs/training.md '
                'says how to get weights for a real camera')

    def _release_engine(self) -> None:
        """Let the engine go, and its device's memory once the frame in flight is through."""
        if self._engine is not None:
            device, self._engine = self._engine.device, None
            self._worker.submit(partial(_free_memory, device))

    def _wait_for(self, future: Future):
        """
        Wait for a job of the worker, but not beyond a signal.

        :raises KeyboardInterrupt: at one, whichever: rclpy takes any other exception for one of
            the transition's.
        """
        while not wait([future], timeout=0.1).done:
            if programs.must_end():
                raise KeyboardInterrupt
        return future.result()

    def _unsubscribe(self) -> None:
        for camera in self._cameras:
            camera.unsubscribe()
        self._worker.clear()

    def _publish_labels(self) -> None:
        if SEGMENTATION in self._engine.card.tasks:
            self._label_topics.publish(self._labels, self._settings.confidence_threshold)

    # -- Frames, on the worker ---------------------------------------------------------------

    def _process(self, frames: list[Frame]) -> None:
        """Take frames from message to messages; whatever goes wrong, the next ones are taken."""
        engine, settings = self._engine, self._settings
        if engine is None:
            return
        groups: dict[frozenset[str], list[Shot]] = {}
        for frame in frames:
            with frame.camera.reporting():
                shot = frame.camera.read(frame, settings)
                if shot is not None:
                    groups.setdefault(shot.tasks, []).append(shot)
        for tasks, shots in groups.items():
            self._process_shots(tasks, shots, engine, settings)

    def _process_shots(self, tasks: frozenset[str], shots: list[Shot], engine, settings) -> None:
        """Infer what was shot at one time for the same tasks in one batch, and publish it."""
        correct, images = settings.correct_focal_length, [shot.image for shot in shots]
        try:
            _apply_settings(engine, settings)
            needs = tasks, settings.input_size, *(image.shape for image in images)
            if needs != self._prepared:  # a camera's first image, say, or another topic is read
                lacked, self._prepared = engine.prepare(images, tasks), needs
                if lacked and needs not in self._given_back:
                    self._given_back.append(needs)
                    self._give_back(shots)
                    return
            predictions = engine.infer_batch(
                images, tasks,
                [shot.focal_length if correct else None for shot in shots])
        except Exception as error:
            for shot in shots:
                shot.camera.report_exception(error)
            return
        for shot, prediction in zip(shots, predictions, strict=True):
            with shot.camera.reporting():
                shot.camera.publish(shot, prediction, settings, self._labels)

    def _give_back(self, shots: list[Shot]) -> None:
        """Take these again, or what has come meanwhile: by now that is what the camera sees."""
        for shot in shots:
            if shot.camera.serves(shot.frame):
                self._worker.give_back(shot.frame, shot.camera.name)

    # -- Parameters and diagnostics ----------------------------------------------------------

    def _on_set_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Take over a set of values as a whole, or refuse it with the reason."""
        try:
            self._check_state_allows(parameters)
            settings = self._settings.updated(parameters)
            if self._engine is not None:
                _check_tasks(settings, self._engine)
                _check_classes(settings, self._labels)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        old, self._settings = self._settings, settings
        self._worker.limit_rate(settings.max_rate)
        if (self._engine is not None
                and settings.obstacles_floor_classes != old.obstacles_floor_classes):
            self._warn_about_classes()
        if self._is_active and settings.confidence_threshold != old.confidence_threshold:
            self._publish_labels()
        return SetParametersResult(successful=True)

    def _check_state_allows(self, parameters: list[Parameter]) -> None:
        name = self.get_fully_qualified_name()
        deactivate = ['deactivate'] if self._is_active else []
        cleanup = ['cleanup'] if self._engine is not None else []
        for when, transitions in ((parameter_table.UNCONFIGURED, deactivate + cleanup),
                                  (parameter_table.INACTIVE, deactivate)):
            refused = parameter_table.changes(self._settings, parameters, when)
            if refused and transitions:
                commands = ', then '.join(
                    f'`ros2 lifecycle set {name} {transition}`' for transition in transitions)
                raise ValueError(f"{', '.join(refused)} {when}; first {commands}")

    @property
    def _is_active(self) -> bool:
        return any(camera.is_active for camera in self._cameras)

    def _publish_diagnostics(self) -> None:
        array = DiagnosticArray(status=[self._status(camera) for camera in self._cameras])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)

    def _status(self, camera: Camera) -> DiagnosticStatus:
        camera.report_silence()
        engine, settings = self._engine, self._settings
        longest = max(SILENCE, 2 / settings.max_rate if settings.max_rate else 0)
        level, message, values = camera.statistics.take_report(longest)
        if self._failure is not None:
            level, message = DiagnosticStatus.ERROR, self._failure
        elif not camera.is_active:
            level = DiagnosticStatus.OK
            message = 'not configured' if self._engine is None else 'not active'
        values |= {
            'image topic': camera.image_topic,
            'frames dropped for newer ones': str(self._worker.dropped(camera.name)),
            'weights': settings.weights,
            'tasks': ', '.join(settings.tasks),
            'tasks with a subscriber': ', '.join(sorted(camera.outputs.wanted_tasks())),
            'input size': f'{settings.input_width}×{settings.input_height}',
        }
        if engine is not None:
            values |= {'device': engine.device, 'precision': str(engine.precision),
                       'backend': engine.backend}
        name = ': '.join(filter(None, (self.get_name(), camera.name, 'inference')))
        return diagnostic_status(name, values.get('device', ''), level, message, values)


def _apply_settings(engine, settings) -> None:
    """Hand the live parameters to the engine."""
    engine.tasks = settings.tasks
    engine.input_size = settings.input_size
    # The limits are those of the depth that is published, after its scale.
    engine.depth_range = (
        settings.min_depth / settings.depth_scale, settings.max_depth / settings.depth_scale)
    engine.confidence_threshold = settings.confidence_threshold


def _check_tasks(settings, engine) -> None:
    """Raise ValueError for a task that the weights do not have, or not as ROS wants it."""
    select_tasks(settings.tasks, engine.available_tasks)
    if DEPTH in settings.tasks and engine.card.depth_unit != 'metre':
        others = ', '.join(task for task in settings.tasks if task != DEPTH)
        raise ValueError(
            f"parameter 'tasks': the depth of these weights is {engine.card.depth_unit}, without "
            'unit, and in ROS depth is in metres (REP 118); leave depth out'
            + (f': [{others}]' if others else ''))


def _free_memory(device: str) -> None:
    """Free what an engine that is gone has left behind; on the thread that ran it."""
    gc.collect()
    free_unused_memory(device)


def _check_classes(settings, labels: LabelSet) -> None:
    """Raise ValueError if `points.classes` names a class that the weights do not have."""
    try:
        select_classes(settings.points_classes, labels.names)
    except ValueError as error:
        raise ValueError(f"parameter 'points.classes': {error}") from None


def main(args: list[str] | None = None) -> int:
    """
    Run the node until SIGINT or SIGTERM, then end the process with exit code 0.

    The exit code is 1 where the node cannot start, with the reason on stderr.
    """
    node = start('mtan_node', MtanNode, args, parameter_table.declarations())
    forward_logs(node.get_logger())
    spin(node)
    leave(node)


if __name__ == '__main__':
    sys.exit(main())
