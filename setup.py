"""Only the part of the build that `pyproject.toml` cannot say: the CFFI extension."""

from setuptools import setup

setup(
    cffi_modules=["src/mvirt_net/ffi/build.py:ffibuilder"],
    # One wheel for CPython 3.11 and all later ones (PEP 384).
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
