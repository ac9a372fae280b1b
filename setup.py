"""The one thing that setup.cfg cannot say: the C extension. Without a compiler the package is installed without it."""

from setuptools import Extension, setup

setup(ext_modules=[
    Extension("wsthread._speedups", ["wsthread/_speedups.c"], depends=["wsthread/gate.h"], optional=True),
])
