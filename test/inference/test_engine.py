# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""The engine: its outputs' form and place, its settings, and what it refuses."""

from dataclasses import replace
import gc
import logging
import subprocess
import sys
from types import SimpleNamespace
import weakref

import numpy as np
import pytest
import torch

from mtan_perception.checkpoint import build_network, load_network, save_checkpoint
from mtan_perception.geometry import fit_image
from mtan_perception.inference import devices, Engine, EngineError
from mtan_perception.inference import engine as engine_module
from mtan_perception.inference.backends.torch_images import TorchImages
from mtan_perception.inference.devices import choose_device, choose_precision
from mtan_perception.inference.errors import BackendError
from mtan_perception.model_card import CheckpointError, COMPACT, ModelCard

SIZE = (64, 96)


@pytest.fixture(scope='module')
def engine():
    """One engine on random weights for the tests that leave its settings as they were."""
    return Engine('random', 'cpu', input_size=SIZE, backend='torch')


@pytest.fixture
def image():
    """Return noise of another aspect than the input size."""
    return np.random.default_rng(0).integers(0, 256, (120, 150, 3), np.uint8)


@pytest.mark.parametrize('backend', ('torch', 'openvino', 'onnxruntime'))
def test_an_engine_is_freed_when_it_goes(backend, image):
    """Hundreds of megabytes do not wait for a garbage collection."""
    if backend != 'torch':
        pytest.importorskip(backend)
    engine = Engine('random', 'cpu', input_size=SIZE, backend=backend)
    engine.infer(image)
    gone = weakref.ref(engine._backend)
    gc.collect()
    gc.disable()
    try:
        del engine
        assert gone() is None
    finally:
        gc.enable()


class Copy:
    """A backend whose depth is the image's red channel, each pixel where it came from."""

    name, precision = 'copy', 'fp32'

    def __call__(self, x, tasks):
        """Return the input as the wanted depth."""
        assert tasks == ('depth',) and x.shape[2] % 8 == x.shape[3] % 8 == 0
        self.input = x
        return {'depth': x[:, 0]}


def openvino_images(*arguments):
    from mtan_perception.inference.backends.openvino_images import OpenVINOImages
    return OpenVINOImages(*arguments)


@pytest.fixture(params=[TorchImages, openvino_images], ids=['torch', 'openvino'])
def copier(request, monkeypatch):
    """Return an engine around the copying backend; depth is red, 0 to 1."""
    if request.param is openvino_images:
        pytest.importorskip('openvino')
    monkeypatch.setattr(Copy, 'images', staticmethod(request.param), raising=False)
    card = ModelCard({'depth': 1}, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    monkeypatch.setattr('mtan_perception.inference.engine.read_card', lambda weights: card)
    monkeypatch.setattr('mtan_perception.inference.engine.build_backend', lambda *_: Copy())
    return Engine('random', 'cpu', input_size=SIZE)


def test_what_further_images_lack_is_prepared_once(image, caplog):
    """For the size that the network sees, whatever the images' own; bad ones are refused."""
    pytest.importorskip('openvino')
    engine = Engine('random', 'cpu', input_size=SIZE, backend='openvino')
    engine.warm_up()
    upright = np.ascontiguousarray(image.swapaxes(0, 1))
    with caplog.at_level(logging.INFO):
        assert engine.prepare([image, upright])
        assert not engine.prepare([upright, image], ('depth',))
        assert engine.prepare([upright[::2, ::2]]), 'the resizing of that size'
        before = caplog.text.count('openvino: building')
        engine.infer_batch([image, upright])
    assert caplog.text.count('openvino: building') == before == 2
    with pytest.raises(EngineError, match=r'images\[1\]: float64'):
        engine.prepare([image, image / 255])
    with pytest.raises(EngineError, match="tasks: unknown 'flow'"):
        engine.prepare([image], ['flow'])


def test_outputs_have_one_size_and_their_types(engine, image):
    """The form that the topics rely on."""
    prediction = engine.infer(image)
    assert prediction.scale == 64 / 120
    for name, dtype, shape in (('image', np.uint8, (64, 80, 3)), ('label', np.uint8, (64, 80)),
                               ('confidence', np.uint8, (64, 80)),
                               ('depth', np.float32, (64, 80)),
                               ('normal', np.float32, (64, 80, 3))):
        array = getattr(prediction, name)
        assert (array.dtype, array.shape) == (dtype, shape), name
        assert array.flags.c_contiguous and array.flags.aligned, name
    assert prediction.label.max() < 13
    assert np.linalg.norm(prediction.normal, axis=2) == pytest.approx(1, abs=1e-5)
    assert list(prediction.timings) == ['preprocess', 'network', 'postprocess']
    assert all(seconds > 0 for seconds in prediction.timings.values())


def test_outputs_are_the_networks(engine, image):
    """Argmax, rounded probability, depth and normal of the network called by hand."""
    prediction = engine.infer(image)
    network, card = load_network('random')
    x = torch.tensor(prediction.image).permute(2, 0, 1)[None] / 255
    x = (x - torch.tensor(card.mean).view(3, 1, 1)) / torch.tensor(card.std).view(3, 1, 1)
    with torch.no_grad():
        maps = network(x)
    probability = maps['segmentation'][0].exp().numpy()
    assert (prediction.label == probability.argmax(0)).mean() > 0.999
    assert np.abs(prediction.confidence - 255.0 * probability.max(0)).max() < 0.51
    depth = maps['depth'][0, 0].numpy()
    assert np.array_equal(np.isnan(prediction.depth), depth <= 0)
    assert np.nanmax(np.abs(prediction.depth - depth)) < 1e-4
    assert np.abs(prediction.normal - maps['normal'][0].permute(1, 2, 0).numpy()).max() < 1e-3


@pytest.mark.parametrize('size', [(64, 96), (120, 150), (61, 211), (31, 40), (300, 403)])
def test_nothing_is_shifted_or_stretched(copier, size):
    """A spot comes out where the one scale puts it, wherever it is and whatever the size."""
    rows, columns = np.mgrid[:size[0], :size[1]]
    fit = fit_image(size, SIZE)
    radius = 1.5 / min(fit.scale, 1)
    for v, u in ((size[0] * 0.25, size[1] * 0.75), (size[0] * 0.75, size[1] * 0.25)):
        spot = np.exp(-((rows - v) ** 2 + (columns - u) ** 2) / (2 * radius ** 2))
        picture = np.repeat((255 * spot).round().astype(np.uint8)[..., None], 3, axis=2)
        found = np.nan_to_num(copier.infer(picture).depth)
        assert found.shape == (fit.height, fit.width)
        i, j = np.mgrid[:fit.height, :fit.width]
        # Centres of pixels are at whole numbers, edges of the image at -0.5.
        assert (found * i).sum() / found.sum() == pytest.approx((v + 0.5) * fit.scale - 0.5,
                                                                abs=0.1)
        assert (found * j).sum() / found.sum() == pytest.approx((u + 0.5) * fit.scale - 0.5,
                                                                abs=0.1)


def test_sampling_uses_the_one_scale_even_where_the_size_is_rounded(copier):
    """At the far edge of a ramp, scaling by the rounded size would be off by 0.75 pixels."""
    size = (199, 200)  # scale 0.32161, width 64.32
    ramp = np.repeat(np.tile(np.arange(200, dtype=np.uint8), (199, 1))[..., None], 3, axis=2)
    prediction = copier.infer(ramp)
    assert prediction.depth.shape == (64, 64)
    expected = (np.arange(64) + 0.5) / fit_image(size, SIZE).scale - 0.5
    assert np.abs(prediction.depth[32, 2:-2] * 255 - expected[2:-2]).max() < 0.55


def test_shrinking_does_not_alias(copier):
    """A checkerboard of single pixels shrinks to grey, not to stripes."""
    # By an odd factor: by an even one each sample lies between pixels, and is grey in any case.
    board = np.repeat((np.indices((320, 480)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    assert np.ptp(copier.infer(board).image[2:-2, 2:-2]) < 20


def test_padding_repeats_the_border_and_is_cut_off(copier):
    """The network sees no edge at the image's border, the output none of the padding."""
    picture = np.random.default_rng(0).integers(1, 256, (61, 93, 3), np.uint8)
    copier.input_size = (61, 93)
    prediction = copier.infer(picture)
    assert np.array_equal(prediction.image, picture)
    assert prediction.depth * 255 == pytest.approx(picture[..., 0], abs=1e-3)
    seen = np.asarray(copier._backend.input[0, 0]) * 255
    assert seen.shape == (64, 96)
    assert seen[:61, 93:] == pytest.approx(np.tile(picture[:, -1:, 0], 3))
    assert seen[61:, :93] == pytest.approx(np.tile(picture[-1:, :, 0], (3, 1)))


def test_a_prediction_does_not_share_memory_with_the_camera(copier):
    """The node's image is a view of a message that is gone with the next frame."""
    picture = np.full((*SIZE, 3), 100, np.uint8)
    prediction = copier.infer(picture)
    picture[:] = 0
    assert (prediction.image == 100).all() and (prediction.depth > 0.3).all()


@pytest.mark.filterwarnings('error')
def test_any_view_of_an_image_is_read_right(copier):
    """Padded rows, swapped channels and read-only memory, as messages bring them."""
    rgb = np.random.default_rng(0).integers(1, 256, (*SIZE, 3), np.uint8)
    padded = np.zeros((SIZE[0], SIZE[1] + 5, 3), np.uint8)
    padded[:, :SIZE[1]] = rgb
    read_only = np.frombuffer(rgb.tobytes(), np.uint8).reshape(rgb.shape)
    swapped = np.ascontiguousarray(rgb[..., ::-1])[..., ::-1]
    for view in (padded[:, :SIZE[1]], read_only, swapped):
        assert np.array_equal(copier.infer(view).image, rgb)


def test_only_wanted_tasks_are_computed(engine, image):
    """Other decoders do not run, and their outputs are None."""
    called = []
    hooks = [head.register_forward_hook(lambda *_, name=name: called.append(name))
             for name, head in engine._backend._network.heads.items()]
    prediction = engine.infer(image, ['normal'])
    assert called == ['normal']
    assert prediction.label is prediction.confidence is prediction.depth is None
    assert prediction.normal is not None and prediction.image is not None
    engine.tasks = ('depth', 'segmentation')
    assert engine.tasks == ('segmentation', 'depth')
    prediction = engine.infer(image)
    engine.tasks = engine.available_tasks
    assert called == ['normal', 'segmentation', 'depth'] and prediction.normal is None
    for hook in hooks:
        hook.remove()


def test_settings_take_effect_on_the_next_frame(copier, image):
    """Size and depth range; what is out of range becomes NaN."""
    before = copier.infer(image).depth
    copier.depth_range = (0.25, 0.75)
    after = copier.infer(image).depth
    kept = (before >= 0.25) & (before <= 0.75)
    assert 0 < kept.mean() < 1
    assert np.array_equal(np.isfinite(after), kept) and np.array_equal(after[kept], before[kept])
    copier.input_size = [32, 40]
    assert copier.input_size == (32, 40) and copier.infer(image).depth.shape == (32, 40)


@pytest.mark.parametrize('focal_length, learnt, unit, factor', [
    (200.0, 100.0, 'metre', 2.0),  # a lens twice as long: what looks 2 m away is 4 m away
    (None, 100.0, 'metre', 1.0),
    (200.0, None, 'metre', 1.0),
    (200.0, 100.0, 'inverse', 1.0),  # a disparity does not grow as a distance does
])
def test_depth_is_corrected_by_the_focal_length(copier, focal_length, learnt, unit, factor):
    copier.card = replace(copier.card, focal_length=learnt, depth_unit=unit)
    grey = np.full((*SIZE, 3), 51, np.uint8)
    depth = copier.infer(grey, focal_length=focal_length).depth
    np.testing.assert_allclose(depth, 0.2 * factor, rtol=1e-5)


def test_the_focal_length_counts_at_the_size_that_the_network_sees(copier):
    copier.card = replace(copier.card, focal_length=100.0)
    grey = np.full((2 * SIZE[0], 2 * SIZE[1], 3), 51, np.uint8)
    copier.depth_range = 0.0, 0.3
    np.testing.assert_allclose(copier.infer(grey, focal_length=200.0).depth, 0.2, rtol=1e-5)
    assert np.isnan(copier.infer(grey, focal_length=400.0).depth).all(), \
        'the range holds for corrected depth'


def test_confidence_threshold_unlabels(engine, image):
    """Pixels below the threshold are 255, the others keep their class."""
    before = engine.infer(image)
    level = (int(before.confidence.min()) + int(before.confidence.max())) // 2
    engine.confidence_threshold = (level + 0.5) / 255
    after = engine.infer(image)
    engine.confidence_threshold = 0.0
    unsure = before.confidence <= level
    assert 0 < unsure.mean() < 1
    assert np.array_equal(after.label == 255, unsure)
    assert np.array_equal(after.label[~unsure], before.label[~unsure])
    assert np.array_equal(after.confidence, before.confidence)


@pytest.mark.parametrize('name, value, words', [
    ('tasks', ['edges'], "tasks: unknown 'edges'; .*segmentation, depth, normal"),
    ('tasks', 'edges', "tasks: unknown 'edges'"),
    ('tasks', [], 'tasks: none wanted; name at least one of segmentation, depth, normal'),
    ('input_size', (16, 384), 'input_size: 16x384; .*32 to 4096'),
    ('input_size', (288, 5000), 'input_size: 288x5000'),
    ('input_size', (288.5, 384), 'input_size'),
    ('input_size', (288, 384, 0.5), r'input_size: \(288, 384, 0.5\)'),
    ('input_size', 288, 'input_size: 288'),
    ('depth_range', (3, 3), r'depth_range: \(3, 3\)'),
    ('depth_range', (-1, 3), 'depth_range'),
    ('depth_range', (float('nan'), 3), 'depth_range'),
    ('confidence_threshold', 1.5, 'confidence_threshold: 1.5'),
    ('confidence_threshold', -0.1, 'confidence_threshold: -0.1'),
    ('depth_range', None, 'depth_range: None; give two distances'),
    ('depth_range', (1.0,), 'give two distances'),
    ('confidence_threshold', 'high', "confidence_threshold: 'high'; give a probability"),
])
def test_a_refused_setting_leaves_the_old_one(engine, name, value, words):
    """The error names the parameter, the value and the choices."""
    before = getattr(engine, name)
    with pytest.raises(EngineError, match=words):
        setattr(engine, name, value)
    assert getattr(engine, name) == before


@pytest.mark.parametrize('bad', [
    np.zeros((48, 64, 3), np.float32), np.zeros((48, 64), np.uint8),
    np.zeros((48, 64, 4), np.uint8), np.zeros((0, 64, 3), np.uint8), [[0, 0, 0]],
], ids=['float', 'grey', 'rgba', 'empty', 'list'])
def test_a_bad_image_is_refused(engine, bad):
    """The error says what came and what is wanted."""
    with pytest.raises(EngineError, match=r'image: .*give '):
        engine.infer(bad)


def test_a_batch_predicts_what_each_image_alone_does(engine, image):
    """Sizes mixed, focal lengths given to some: order and content are those of single calls."""
    images = [image, image[:61, :93], image[::-1, :, ::-1], image[:, :40]]
    focal_lengths = [100.0, None, 150.0, None]
    together = engine.infer_batch(images, ['normal', 'depth'], focal_lengths)
    alone = [engine.infer(picture, ['normal', 'depth'], focal_length)
             for picture, focal_length in zip(images, focal_lengths, strict=True)]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.scale == theirs.scale and ours.label is None and ours.confidence is None
        assert list(ours.timings) == list(theirs.timings)
        assert np.array_equal(ours.image, theirs.image)
        assert np.nanmax(np.abs(ours.depth - theirs.depth)) < 1e-5
        assert np.abs(ours.normal - theirs.normal).max() < 1e-4
        assert ours.depth.flags.c_contiguous and ours.depth.flags.aligned
    assert engine.infer_batch([]) == []


def test_images_of_one_network_size_share_a_forward_pass(copier):
    """A focal length corrects its own image alone."""
    copier.card = replace(copier.card, focal_length=100.0)
    grey = np.full((*SIZE, 3), 51, np.uint8)
    depths = [prediction.depth for prediction in
              copier.infer_batch([grey, grey[:59], grey[:32, :48]], focal_lengths=[200, None, 50])]
    assert copier._backend.input.shape == (3, 3, *SIZE)
    assert [depth.shape for depth in depths] == [SIZE, (59, 96), SIZE]
    assert [depth.mean() for depth in depths] == pytest.approx([0.4, 0.2, 0.2])


def test_the_precision_is_what_the_backend_computes_in(copier, monkeypatch):
    monkeypatch.setattr(Copy, 'precision', 'bf16')
    assert Engine('random', 'cpu').precision == 'bf16'


def test_each_image_has_its_share_of_each_stage(monkeypatch):
    now = 10.0
    monkeypatch.setattr(engine_module, 'time', SimpleNamespace(perf_counter=lambda: now))
    clock = engine_module._Stopwatch(lambda: None, 4)
    for name, seconds in (('preprocess', 2.0), ('network', 6.0)):
        now += seconds
        clock.lap(name)
    assert clock.laps == {'preprocess': 0.5, 'network': 1.5}


def test_a_bad_batch_is_refused(engine, image):
    """The error names the one image, or the number of focal lengths."""
    with pytest.raises(EngineError, match=r'images\[1\]: float32'):
        engine.infer_batch([image, image.astype(np.float32)])
    with pytest.raises(EngineError, match='focal_lengths: 1 for 2 images'):
        engine.infer_batch([image, image], focal_lengths=[100.0])


@pytest.mark.parametrize('arguments, words', [
    ({'device': 'tpu'}, "device: 'tpu' is not known; .*available here: cpu"),
    ({'device': 'cuda:99'}, "device: 'cuda:99' is not available; this machine has cpu"),
    ({'precision': 'int3'}, "precision: 'int3' is not known"),
    ({'tasks': ['depth', 'edges']}, "tasks: unknown 'edges'"),
    ({'input_size': (1, 1)}, 'input_size: 1x1'),
    ({'backend': 'abacus'}, "backend: 'abacus' is not known; choose 'auto', 'torch'"),
])
def test_a_bad_argument_is_refused(arguments, words):
    """The error names the parameter, the value and the choices."""
    with pytest.raises(EngineError, match=words):
        Engine('random', **arguments)


def test_bf16_agrees_with_fp32(engine, image):
    """Half the bits, the same picture; the outputs' types stay."""
    half = Engine('random', 'cpu', 'bf16', input_size=SIZE, backend='torch').infer(image)
    full = engine.infer(image)
    assert half.depth.dtype == half.normal.dtype == np.float32
    assert (half.label == full.label).mean() > 0.95
    known = np.isfinite(half.depth) & np.isfinite(full.depth)
    assert known.mean() > 0.95
    assert np.abs(half.depth - full.depth)[known].mean() < 0.02 * np.abs(full.depth[known]).mean()
    assert (half.normal * full.normal).sum(2).mean() > 0.999


def test_a_precision_that_the_device_lacks_is_replaced(caplog):
    """A warning names both; the engine runs."""
    with caplog.at_level(logging.WARNING):
        engine = Engine('random', 'cpu', 'fp16', input_size=(32, 32), backend='torch')
    assert engine.precision == 'fp32'
    assert 'precision: fp16 is not supported on cpu (fp32, bf16 are)' in caplog.text
    engine.warm_up()


def test_a_backend_that_fails_on_a_frame_is_replaced(copier, image, monkeypatch, caplog):
    """The frame is predicted all the same, by torch, in place of what failed."""
    class Broken(Copy):
        name = 'broken'

        def __call__(self, x, tasks):
            raise BackendError('the runtime is broken\nlong story')
    asked = []
    monkeypatch.setattr('mtan_perception.inference.engine.build_backend',
                        lambda name, *rest: asked.append((name, rest[-1])) or Copy())
    copier._backend = Broken()
    with caplog.at_level(logging.WARNING):
        assert copier.infer(image).depth is not None
    assert asked == [('torch', 'broken')]
    assert 'failed (the runtime is broken); going on with torch' in caplog.text


@pytest.mark.parametrize('error', [
    torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'),
    RuntimeError('CUDA error: out of memory'), RuntimeError('CUBLAS_STATUS_ALLOC_FAILED')])
def test_a_device_too_small_is_replaced_by_the_cpu(copier, image, monkeypatch, caplog, error):
    """Out of memory on CUDA: the warning says what would help."""
    class Full(Copy):

        def __call__(self, x, tasks):
            copier.device = 'cuda:0'  # as if it had run there
            raise error
    monkeypatch.setattr('mtan_perception.inference.engine.build_backend', lambda *_: Copy())
    copier._backend = Full()
    with caplog.at_level(logging.WARNING):
        assert copier.infer(image).depth is not None
    assert copier.device == 'cpu' and copier.precision == 'fp32'
    assert 'cuda:0 has too little memory' in caplog.text and 'smaller input_size' in caplog.text


def test_a_backend_and_then_its_device_are_replaced(copier, image, monkeypatch, caplog):
    """What takes the place of the one that failed may fail as well, when it is built."""
    class Broken(Copy):

        def __call__(self, x, tasks):
            copier.device, copier.precision = 'cuda:0', 'fp16'
            raise BackendError('the runtime is broken')
    asked = []

    def build(name, weights, device, precision, *_):
        asked.append((name, device, precision))
        if device == 'cuda:0':
            raise torch.cuda.OutOfMemoryError('CUDA out of memory.')
        return Copy()
    monkeypatch.setattr('mtan_perception.inference.engine.build_backend', build)
    copier._backend = Broken()
    assert copier.infer(image).depth is not None
    assert asked == [('torch', 'cuda:0', 'fp16'), ('auto', 'cpu', 'fp32')]


def test_too_little_memory_on_the_cpu_names_the_remedy(copier, image):
    """Where there is nothing smaller to go on with."""
    class Large(Copy):

        def __call__(self, x, tasks):
            torch.empty(1 << 60)
    copier._backend = Large()
    with pytest.raises(EngineError, match=r'input_size: .* memory for 64x96 \(.*; choose a small'):
        copier.infer(image)


def test_other_errors_come_out_and_leave_the_engine_as_it_is(copier, image):
    """They are no reason to go on more slowly for ever."""
    class Odd(Copy):

        def __call__(self, x, tasks):
            raise RuntimeError('odd')
    odd = copier._backend = Odd()
    with pytest.raises(RuntimeError, match='odd'):
        copier.infer(image)
    assert copier._backend is odd


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a CUDA device that cannot be used')
def test_a_device_that_this_torch_cannot_use_is_left_alone(monkeypatch, caplog):
    """Its driver may be too old, or itself: it is counted all the same."""
    monkeypatch.setattr(devices, '_has_driver', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    assert choose_device('auto') == 'cpu'
    assert 'device: cuda:0 cannot be used (' in caplog.text
    with pytest.raises(EngineError, match=r"device: 'cuda' cannot be used: .*; choose 'cpu' or"):
        choose_device('cuda')


def test_a_device_that_is_full_is_one_that_can_be_used(monkeypatch):
    """Its memory may be free by the time that it is needed, and there is a way out of it."""
    def fill(*_, **__):
        raise RuntimeError('CUDA error: out of memory')
    monkeypatch.setattr(devices, '_has_driver', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch, 'ones', fill)
    assert choose_device('auto') == choose_device('cuda') == 'cuda:0'


@pytest.mark.parametrize('capability, found', [((7, 5), 'fp32'), ((8, 0), 'bf16')])
def test_bf16_on_a_gpu_that_is_made_for_it(monkeypatch, capability, found):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    assert choose_precision('bf16', 'cuda:0') == found
    assert choose_precision('auto', 'cuda:0') == choose_precision('fp16', 'cuda:0') == 'fp16'


@pytest.mark.parametrize('focal_length', [0, -1.0, float('nan'), float('inf'), '500'])
def test_a_focal_length_that_is_none_is_refused(copier, image, focal_length):
    words = '.*; give it in pixels, above 0'
    with pytest.raises(EngineError, match=f'focal_length: {words}'):
        copier.infer(image, focal_length=focal_length)
    with pytest.raises(EngineError, match=rf'focal_lengths\[1\]: {words}'):
        copier.infer_batch([image] * 2, focal_lengths=[None, focal_length])


def test_random_weights_say_so_and_choose_the_defaults(caplog):
    """The warning is loud; the settings come from the card."""
    with caplog.at_level(logging.WARNING):
        engine = Engine('random', 'cpu')
    assert 'outputs mean nothing' in caplog.text
    assert engine.precision == 'fp32' and engine.device == 'cpu'
    assert engine.input_size == COMPACT.input_size and engine.tasks == tuple(COMPACT.tasks)


def test_weights_from_a_file(tmp_path, image, caplog):
    """A file's card rules: its size, and its tasks where a Prediction has a place for them."""
    tasks = {'albedo': 3, 'normal': 3}
    card = ModelCard(tasks, 'resnet18', 16, 16, (1, 2, 3), input_size=(48, 64))
    path = tmp_path / 'small.safetensors'
    save_checkpoint(path, build_network(card), card, torch.float16)
    engine = Engine(path, 'cpu')
    assert engine.tasks == ('normal',) and engine.input_size == (48, 64) and not caplog.text
    prediction = engine.infer(image)
    assert prediction.normal.shape == (48, 60, 3) and prediction.depth is None
    with pytest.raises(CheckpointError, match=r'nowhere\.safetensors'):
        Engine(tmp_path / 'nowhere.safetensors', 'cpu')


def test_weights_without_a_task_of_ours_are_refused(monkeypatch):
    """The error names the file's tasks and ours."""
    monkeypatch.setattr('mtan_perception.inference.engine.read_card',
                        lambda weights: ModelCard({'albedo': 3}))
    with pytest.raises(EngineError, match=r'weights: a\.safetensors has .*albedo.*depth, normal'):
        Engine('a.safetensors', 'cpu')


def test_building_and_running_changes_no_global_state(image):
    """Threads, types, generators and backend flags belong to the program, not to us."""
    def state():
        return (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
                torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32,
                torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(),
                torch.random.get_rng_state().tolist())
    before = state()
    Engine('random', 'cpu', input_size=(32, 32)).warm_up()
    assert state() == before


def test_a_second_start_with_openvino_does_without_torch(tmp_path):
    """Its import takes 500 MiB, and seconds; what it gave is what comes out all the same."""
    pytest.importorskip('openvino')
    script = """if True:
        import sys
        import numpy as np
        from mtan_perception.inference import Engine
        engine = Engine('random', 'cpu', input_size=(64, 96), backend='openvino')
        image = np.random.default_rng(0).integers(0, 256, (120, 150, 3), np.uint8)
        engine.prepare([image])
        prediction = engine.infer(image)
        np.savez(sys.argv[1], **{name: getattr(prediction, name)
                                 for name in ('image', 'label', 'confidence', 'depth', 'normal')})
        print(engine.backend, 'torch' in sys.modules)"""
    for _ in range(2):
        done = subprocess.run([sys.executable, '-c', script, str(tmp_path / 'found.npz')],
                              capture_output=True, text=True, timeout=120, check=True)
        assert done.stdout == 'openvino False\n'
    image = np.random.default_rng(0).integers(0, 256, (120, 150, 3), np.uint8)
    wanted = Engine('random', 'cpu', input_size=SIZE, backend='torch').infer(image)
    with np.load(tmp_path / 'found.npz') as found:
        assert np.abs(found['image'].astype(int) - wanted.image).max() <= 1
        assert (found['label'] == wanted.label).mean() > 0.99
        assert np.abs(found['confidence'].astype(int) - wanted.confidence).mean() < 1
        assert np.nanmax(np.abs(found['depth'] - wanted.depth)) < 0.01
        assert np.abs(found['normal'] - wanted.normal).max() < 0.01


def test_a_missing_torch_names_the_remedy():
    """Without torch the import fails with the line to install it."""
    code = "import sys; sys.modules['torch'] = None; import mtan_perception.inference"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                            timeout=60)
    assert result.returncode == 1
    assert 'pip install torch' in result.stderr.splitlines()[-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('precision', ['fp32', 'auto', 'bf16'])
def test_cuda_agrees_with_the_cpu(engine, image, precision):
    """The same image on both devices: nearly the same picture."""
    on_gpu, on_cpu = Engine('random', 'cuda', precision, input_size=SIZE), engine
    ours, theirs = on_gpu.infer(image), on_cpu.infer(image)
    assert on_gpu.device == 'cuda:0'
    assert np.abs(ours.image.astype(int) - theirs.image).max() <= 1
    assert (ours.label == theirs.label).mean() > 0.95
    assert (ours.normal * theirs.normal).sum(2).mean() > 0.999
    known = np.isfinite(ours.depth) & np.isfinite(theirs.depth)
    assert known.mean() > 0.95
    assert ours.depth[known] == pytest.approx(theirs.depth[known], rel=0.05, abs=0.05)
