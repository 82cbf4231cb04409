# Copyright 2026 The mtan_perception authors
# SPDX-License-Identifier: Apache-2.0
"""Install mtan_perception as an ament_python package."""

from pathlib import Path
import re

from setuptools import find_packages, setup

NAME = 'mtan_perception'
HERE = Path(__file__).resolve().parent
# Read as text: importing the package is not possible in every build environment.
VERSION = re.search(r"^__version__ = '([^']+)'", (HERE / NAME / '__init__.py').read_text(), re.M)


def share(*suffixes: str) -> list[tuple[str, list[str]]]:
    """Return the data_files entries that install launch/ and config/ as they are."""
    entries = {}
    for folder in ('launch', 'config'):
        for path in sorted((HERE / folder).rglob('*')):
            if path.name.endswith(suffixes):
                path = path.relative_to(HERE)
                entries.setdefault(f'share/{NAME}/{path.parent}', []).append(str(path))
    return list(entries.items())


setup(
    name=NAME,
    version=VERSION.group(1),
    description='Segmentation, depth and surface normals from one camera, as ROS 2 topics',
    author='The mtan_perception authors',
    maintainer='The mtan_perception maintainers',
    maintainer_email='maintainer@mtan-perception.dev',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=[NAME, f'{NAME}.*']),
    package_data={NAME: ['weights/*.safetensors']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        *share('.launch.py', '.rviz', '.xml', '.yaml'),
    ],
    # torch and the rest are left to the installer (see README.md): under colcon they come from
    # the system or the virtual environment, and a requirement here would stop the scripts.
    install_requires=['setuptools'],
    extras_require={
        'test': ['pytest'],  # by this colcon knows that pytest runs the tests
        'openvino': ['openvino>=2024.4'],
        'onnxruntime': ['onnx', 'onnxruntime'],
    },
    zip_safe=False,
    entry_points={
        'console_scripts': [
            f'mtan_node = {NAME}.node.programs:mtan_node',
            f'camera_node = {NAME}.node.programs:camera_node',
            f'mtan = {NAME}.cli.main:main',
        ],
    },
)
