# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""
The kernels of the triton backend.

Maps lie in memory pixel by pixel, their channels side by side. The suffixes of strides are
b(ranch), t(ask), n (image), h (row), w (column), c(hannel); all are in elements. What the size and
the shape of a layer decide is no constant, so that few kernels do for all layers of a network.
"""

import triton
from triton import language as tl


@triton.jit(do_not_specialize=[
    'images', 'height', 'width', 'out_height', 'out_width', 'stride', 'side', 'dilation',
    'other_stride', 'activation', 'has_addend', 'has_factor', 'tile_width', 'tiles_across',
    'tiles_out'])
def convolve(x, weight, bias, addend, factor, other, other_weight, y, branches,
             images, height, width, out_height, out_width, in_channels, out_channels,
             other_channels, stride, side, dilation, other_stride, activation, has_addend,
             has_factor, tile_width, tiles_across, tiles_out, weight_t,
             x_t, x_n, x_h, x_w, y_b, y_t, y_n, y_h, y_w, a_t, a_n, a_h, a_w, f_t, f_n, f_h, f_w,
             o_t, o_n, o_h, o_w, bias_b, bias_t, bias_n,
             HAS_BRANCHES: tl.constexpr, HAS_OTHER: tl.constexpr, IS_POINT: tl.constexpr,
             PIXELS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr):
    """
    Return factor * activation(weight * x + other_weight * other + bias + addend).

    A program computes OUTPUTS channels of a tile of pixels, of one image, task and branch.
    """
    tile = tl.program_id(0)
    pixels, out = tile // tiles_out, tile % tiles_out
    task = (tl.program_id(1) // images).to(tl.int64)
    image = (tl.program_id(1) % images).to(tl.int64)
    branch = tl.program_id(2)
    if HAS_BRANCHES:
        # Offsets are multiples of the numbers of channels, for loads of 16 bytes.
        weight += tl.multiple_of(tl.load(branches + 4 * branch), 16)
        weight_t = tl.multiple_of(tl.load(branches + 4 * branch + 1), 16)
        side = tl.load(branches + 4 * branch + 2).to(tl.int32)
        dilation = tl.load(branches + 4 * branch + 3).to(tl.int32)
    x += task * x_t + image * x_n
    weight += task * weight_t
    y += branch * y_b + task * y_t + image * y_n
    addend += task * a_t + image * a_n
    factor += task * f_t + image * f_n
    bias += branch * bias_b + task * bias_t + image * bias_n

    tile_height = PIXELS // tile_width
    top, left = pixels // tiles_across * tile_height, pixels % tiles_across * tile_width
    pixel = tl.arange(0, PIXELS)
    row, column = top + pixel // tile_width, left + pixel % tile_width
    is_inside = (row < out_height) & (column < out_width)
    channel = out * OUTPUTS + tl.arange(0, OUTPUTS)
    is_channel = channel < out_channels
    depth = tl.arange(0, INPUTS)
    weights = weight + channel[None, :] * (side * side * in_channels) + depth[:, None]
    sums = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    if IS_POINT:
        values = x + (row * stride * x_h + column * stride * x_w)[:, None] + depth[None, :]
        for _ in range(in_channels // INPUTS):
            sums = tl.dot(tl.load(values, mask=is_inside[:, None], other=0),
                          tl.load(weights, mask=is_channel[None, :], other=0), sums)
            values += INPUTS
            weights += INPUTS
    else:
        # Only taps that for some pixel of the tile meet a row, and a column, of the map.
        padding = dilation * (side // 2)
        bottom = tl.minimum(top + tile_height, out_height) - 1
        right = tl.minimum(left + tile_width, out_width) - 1
        first_row = (tl.maximum(padding - bottom * stride, 0) + dilation - 1) // dilation
        last_row = tl.minimum(side - 1, (height - 1 + padding - top * stride) // dilation)
        first_column = (tl.maximum(padding - right * stride, 0) + dilation - 1) // dilation
        last_column = tl.minimum(side - 1, (width - 1 + padding - left * stride) // dilation)
        source_row, source_column = row * stride - padding, column * stride - padding
        tap_row, tap_column, start = first_row, first_column, 0
        # One loop, not three: so the next tap's values are on their way meanwhile.
        for _ in range((last_row - first_row + 1) * (last_column - first_column + 1)
                       * (in_channels // INPUTS)):
            from_row = source_row + tap_row * dilation
            from_column = source_column + tap_column * dilation
            meets = (is_inside & (from_row >= 0) & (from_row < height)
                     & (from_column >= 0) & (from_column < width))
            values = tl.load(x + (from_row * x_h + from_column * x_w)[:, None]
                             + (start + depth)[None, :], mask=meets[:, None], other=0)
            kernel = tl.load(weights + ((tap_row * side + tap_column) * in_channels + start),
                             mask=is_channel[None, :], other=0)
            sums = tl.dot(values, kernel, sums)
            start += INPUTS
            is_next = start == in_channels
            start = tl.where(is_next, 0, start)
            tap_column = tl.where(is_next, tap_column + 1, tap_column)
            is_next = tap_column > last_column
            tap_column = tl.where(is_next, first_column, tap_column)
            tap_row = tl.where(is_next, tap_row + 1, tap_row)
    if HAS_OTHER:
        values = (other + task * o_t + image * o_n + depth[None, :]
                  + (row * other_stride * o_h + column * other_stride * o_w)[:, None])
        weights = other_weight + channel[None, :] * other_channels + depth[:, None]
        for _ in range(other_channels // INPUTS):
            sums = tl.dot(tl.load(values, mask=is_inside[:, None], other=0),
                          tl.load(weights, mask=is_channel[None, :], other=0), sums)
            values += INPUTS
            weights += INPUTS

    is_there = is_inside[:, None] & is_channel[None, :]
    sums += tl.load(bias + channel, mask=is_channel, other=0).to(tl.float32)[None, :]
    sums += tl.load(addend + (row * a_h + column * a_w)[:, None] + channel[None, :],
                    mask=is_there & (has_addend != 0), other=0).to(tl.float32)
    sums = _activate(sums, activation)
    sums *= tl.load(factor + (row * f_h + column * f_w)[:, None] + channel[None, :],
                    mask=is_there & (has_factor != 0), other=1).to(tl.float32)
    tl.store(y + (row * y_h + column * y_w)[:, None] + channel[None, :],
             sums.to(y.dtype.element_ty), mask=is_there)


@triton.jit
def _activate(sums, activation):
    """0 for none, 1 for ReLU, 2 for the sigmoid; what is not a number stays none."""
    if activation == 1:
        sums = tl.maximum(sums, 0, propagate_nan=tl.PropagateNan.ALL)
    if activation == 2:
        sums = 1 / (1 + tl.exp(-sums))
    return sums


@triton.jit(do_not_specialize=['pixels', 'activation', 'has_addend', 'has_factor'])
def complete(y, bias, addend, factor, pixels, channels, activation, has_addend, has_factor,
             y_t, y_n, y_w, a_t, a_n, a_w, f_t, f_n, f_w, bias_t, bias_n,
             PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Turn sums y in place into factor * activation(y + bias + addend)."""
    blocks = tl.cdiv(channels, CHANNELS)
    image, task = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) // blocks * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    is_there = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    places = y + task * y_t + image * y_n + (pixel * y_w)[:, None] + channel[None, :]
    sums = tl.load(places, mask=is_there, other=0).to(tl.float32)
    sums += tl.load(bias + task * bias_t + image * bias_n + channel, mask=channel < channels,
                    other=0).to(tl.float32)[None, :]
    sums += tl.load(addend + task * a_t + image * a_n + (pixel * a_w)[:, None] + channel[None, :],
                    mask=is_there & (has_addend != 0), other=0).to(tl.float32)
    sums = _activate(sums, activation)
    sums *= tl.load(factor + task * f_t + image * f_n + (pixel * f_w)[:, None] + channel[None, :],
                    mask=is_there & (has_factor != 0), other=1).to(tl.float32)
    tl.store(places, sums.to(y.dtype.element_ty), mask=is_there)


@triton.jit
def convolve_image(x, weight, bias, y, height, width, out_height, out_width, out_channels,
                   x_n, x_c, x_h, x_w, PIXELS: tl.constexpr, OUTPUTS: tl.constexpr):
    """Return relu(weight * x + bias) for 7x7 taps at stride 2 over three channels."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    image = tl.program_id(1).to(tl.int64)
    row, column = pixel // out_width, pixel % out_width
    # A row of taps is one product: 7 times 3 values, filled up to 32.
    place = tl.arange(0, 32)
    from_column = column[:, None] * 2 - 3 + (place // 3)[None, :]
    meets_column = ((row < out_height)[:, None] & (place < 21)[None, :]
                    & (from_column >= 0) & (from_column < width))
    x += image * x_n
    columns = from_column * x_w + (place % 3 * x_c)[None, :]
    channel = tl.arange(0, OUTPUTS)
    weights = weight + channel[None, :] * (7 * 32) + place[:, None]
    is_channel = channel < out_channels
    sums = tl.zeros((PIXELS, OUTPUTS), tl.float32)
    for tap in range(7):
        from_row = row * 2 - 3 + tap
        meets = meets_column & ((from_row >= 0) & (from_row < height))[:, None]
        values = tl.load(x + (from_row * x_h)[:, None] + columns, mask=meets, other=0)
        kernel = tl.load(weights + tap * 32, mask=is_channel[None, :], other=0)
        sums = tl.dot(values.to(weight.dtype.element_ty), kernel, sums)
    sums = _activate(sums + tl.load(bias + channel, mask=is_channel, other=0)[None, :], 1)
    y += image * out_height * out_width * out_channels
    tl.store(y + (pixel * out_channels)[:, None] + channel[None, :], sums.to(y.dtype.element_ty),
             mask=(row < out_height)[:, None] & is_channel[None, :])


@triton.jit(do_not_specialize=['stride', 'padding'])
def pool_most(x, y, height, width, out_height, out_width, channels, stride, padding,
              SIDE: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """Return the largest of SIDE x SIDE values of each channel; both maps are contiguous."""
    blocks = tl.cdiv(channels, CHANNELS)
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) // blocks * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    row, column = pixel // out_width, pixel % out_width
    is_there = (row < out_height)[:, None] & (channel < channels)[None, :]
    x += image * height * width * channels
    most = tl.full((PIXELS, CHANNELS), float('-inf'), x.dtype.element_ty)
    for down in tl.static_range(SIDE):
        for across in tl.static_range(SIDE):
            from_row = row * stride - padding + down
            from_column = column * stride - padding + across
            meets = ((from_row >= 0) & (from_row < height)
                     & (from_column >= 0) & (from_column < width))
            most = tl.maximum(most, tl.load(
                x + ((from_row * width + from_column) * channels)[:, None] + channel[None, :],
                mask=is_there & meets[:, None], other=float('-inf')),
                propagate_nan=tl.PropagateNan.ALL)
    y += image * out_height * out_width * channels
    tl.store(y + (pixel * channels)[:, None] + channel[None, :], most, mask=is_there)


@triton.jit
def _interpolate(planes, row, column, height, width, out_height, out_width, step_h, step_w, mask):
    """Return the planes' values at pixels of the image, whose corners lie on the map's."""
    y = row * ((height - 1) / tl.maximum(out_height - 1, 1))
    x = column * ((width - 1) / tl.maximum(out_width - 1, 1))
    top, left = y.to(tl.int32), x.to(tl.int32)
    bottom, right = tl.minimum(top + 1, height - 1), tl.minimum(left + 1, width - 1)
    down, across = y - top, x - left
    upper = ((1 - across) * tl.load(planes + top * step_h + left * step_w, mask=mask, other=0)
             + across * tl.load(planes + top * step_h + right * step_w, mask=mask, other=0))
    lower = ((1 - across) * tl.load(planes + bottom * step_h + left * step_w, mask=mask, other=0)
             + across * tl.load(planes + bottom * step_h + right * step_w, mask=mask, other=0))
    return (1 - down) * upper + down * lower


@triton.jit
def classify(logits, height, width, out_height, out_width, step_n, step_c, step_h, step_w,
             label, probability, channels, CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """As postprocess.classify."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    is_inside = pixel < out_height * out_width
    channel = tl.arange(0, CHANNELS)
    is_channel = (channel < channels)[None, :]
    values = _interpolate(
        logits + tl.program_id(1).to(tl.int64) * step_n + (channel * step_c)[None, :],
        (pixel // out_width)[:, None], (pixel % out_width)[:, None],
        height, width, out_height, out_width, step_h, step_w, is_inside[:, None] & is_channel)
    values = tl.where(is_channel, values, float('-inf'))
    best = tl.max(values, 1)
    place = tl.program_id(1).to(tl.int64) * out_height * out_width + pixel
    tl.store(label + place, tl.argmax(values, 1).to(tl.uint8), mask=is_inside)
    tl.store(probability + place, 1 / tl.sum(tl.exp(values - best[:, None]), 1), mask=is_inside)


@triton.jit
def enlarge(logits, height, width, out_height, out_width, step_n, step_c, step_h, step_w,
            depth, PIXELS: tl.constexpr):
    """As postprocess.upsample, of one channel."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    is_inside = pixel < out_height * out_width
    values = _interpolate(logits + tl.program_id(1).to(tl.int64) * step_n, pixel // out_width,
                          pixel % out_width, height, width, out_height, out_width, step_h,
                          step_w, is_inside)
    place = tl.program_id(1).to(tl.int64) * out_height * out_width + pixel
    tl.store(depth + place, values, mask=is_inside)


@triton.jit
def point(logits, height, width, out_height, out_width, step_n, step_c, step_h, step_w,
          normal, sign_x, sign_y, sign_z, min_norm, PIXELS: tl.constexpr):
    """As postprocess.point_normals."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    is_inside = pixel < out_height * out_width
    row, column = pixel // out_width, pixel % out_width
    logits += tl.program_id(1).to(tl.int64) * step_n
    x = sign_x * _interpolate(logits, row, column, height, width, out_height, out_width,
                              step_h, step_w, is_inside)
    y = sign_y * _interpolate(logits + step_c, row, column, height, width, out_height, out_width,
                              step_h, step_w, is_inside)
    z = sign_z * _interpolate(logits + 2 * step_c, row, column, height, width, out_height,
                              out_width, step_h, step_w, is_inside)
    length = tl.sqrt(x * x + y * y + z * z)
    points = (length > min_norm) & (length < float('inf'))
    place = 3 * (tl.program_id(1).to(tl.int64) * out_height * out_width + pixel)
    tl.store(normal + place, tl.where(points, x / length, 0.0), mask=is_inside)
    tl.store(normal + place + 1, tl.where(points, y / length, 0.0), mask=is_inside)
    tl.store(normal + place + 2, tl.where(points, z / length, -1.0), mask=is_inside)
