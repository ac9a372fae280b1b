"""The one thing that setup.cfg cannot say: the C extension. Without a compiler the package is installed without it.

``WSTHREAD_PURE=1`` in the environment leaves it out; then the wheel is for any Python and any machine.
"""

import os

from setuptools import Extension, setup

setup(ext_modules=[] if os.environ.get("WSTHREAD_PURE") == "1" else [
    Extension("wsthread._speedups", ["wsthread/_speedups.c"], depends=["wsthread/gate.h"], optional=True),
])
