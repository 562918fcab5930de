"""The optional extension; everything else is in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "fuseoverlay._native",
            ["fuseoverlay/_native.c"],
            extra_compile_args=["-O2", "-Wall", "-fvisibility=hidden"],
            # Without it everything works, slower.
            optional=True,
        )
    ]
)
