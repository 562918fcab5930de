"""The optional extension; everything else is in pyproject.toml."""

from setuptools import Extension, setup

SOURCES = ("module", "filter", "answers", "listing", "real", "scan", "merge", "reply")

setup(
    ext_modules=[
        Extension(
            "fuseoverlay.native._native",
            [f"fuseoverlay/native/csrc/{name}.c" for name in SOURCES],
            depends=["fuseoverlay/native/csrc/native.h"],
            extra_compile_args=["-O2", "-Wall", "-fvisibility=hidden"],
            # Without it everything works, slower.
            optional=True,
        )
    ]
)
