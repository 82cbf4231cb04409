# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""``mtan render``: synthetic rooms as npy files and a contact sheet to look at."""

import argparse

from mtan_perception.cli.arguments import check_folder, parse_path, parse_seeds, parse_size

# Frames rendered at once, and rows of the contact sheet.
_BATCH = 16
_SHEET_ROWS = 24


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``render`` subcommand."""
    parser = subparsers.add_parser(
        'render', help='render synthetic rooms with their exact labels, depth and normals',
        description='Write one view of a procedural room for each seed, in the npy layout of the '
                    'NYUv2 data: FOLDER/{image,label,depth,normal}/SEED.npy (image 0..1, label '
                    '0..12, depth z in metres, normals in NYU axes), intrinsics/SEED.npy (3 x 3), '
                    'picture/SEED.png (the image, for mtan predict), '
                    f'and contact_sheet.png with the first {_SHEET_ROWS}. As ROOT/val (the '
                    'test set) and ROOT/train they are read by `mtan evaluate` and `mtan train` '
                    'with --data nyuv2 --root ROOT, but for the cameras of the single frames '
                    '(intrinsics).')
    parser.set_defaults(run=run)
    parser.add_argument('--seeds', required=True, metavar='START:COUNT', help='for example 0:100')
    parser.add_argument('--out', required=True, type=parse_path, metavar='FOLDER',
                        help='made if it does not exist')
    parser.add_argument('--size', default='288x384', metavar='HxW', help='(default %(default)s)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda (default %(default)s)')


def run(args: argparse.Namespace) -> None:
    """Render and write; print where the files are."""
    import numpy as np

    from mtan_perception.cli.outputs import write_npy, write_png
    from mtan_perception.geometry import NORMAL_SIGNS
    from mtan_perception.inference.devices import choose_device
    from mtan_perception.labels import NYUV2_13
    from mtan_perception.synthetic import render
    from mtan_perception.visualization import contact_sheet

    seeds, size = parse_seeds(args.seeds), parse_size(args.size, '--size')
    device = choose_device(args.device)
    signs = np.array(NORMAL_SIGNS['nyu'], np.float32)
    check_folder('--out', args.out)
    folders = [args.out / name for name in ('image', 'label', 'depth', 'normal', 'intrinsics')]
    rows = []
    for first in range(0, len(seeds), _BATCH):
        batch = seeds[first:first + _BATCH]
        frames = render(batch, *size, device=device)
        image, depth, normal = (
            field.permute(0, 2, 3, 1).cpu().numpy()
            for field in (frames.rgb, frames.depth, frames.normal))
        label, intrinsics = frames.label.cpu().numpy(), frames.intrinsics.cpu().numpy()
        for i, seed in enumerate(batch):
            arrays = (image[i], label[i], depth[i], normal[i] * signs, intrinsics[i])
            for folder, array in zip(folders, arrays, strict=True):
                write_npy(folder / f'{seed}.npy', array)
            picture = np.round(255 * image[i]).astype(np.uint8)
            write_png(args.out / 'picture' / f'{seed}.png', picture)
            if len(rows) < _SHEET_ROWS:
                rows.append(_pictures(seed, picture, label[i], depth[i, ..., 0], normal[i]))
    write_png(args.out / 'contact_sheet.png', contact_sheet(rows, NYUV2_13))
    print(f'{len(seeds)} frames of {size[0]} x {size[1]} in {args.out}')


def _pictures(seed, picture, label, depth, normal):
    """Return a row of the contact sheet."""
    import numpy as np

    from mtan_perception.labels import NYUV2_13
    from mtan_perception.visualization import color_depth, color_mask, color_normal

    return ((f'seed {seed}', picture),
            ('segmentation', color_mask(label.astype(np.uint8), NYUV2_13.palette)),
            ('depth 0.3-6 m', color_depth(depth, 0.3, 6.0)),
            ('normals', color_normal(normal)))
