"""The optional extension; everything else is in pyproject.toml.

FUSEOVERLAY_EXTENSION in the environment: `required` fails where it cannot be built, `none` does not
try; docs/packaging.md.
"""

import os

from setuptools import Extension, setup

SOURCES = ("module", "filter", "answers", "listing", "real", "scan", "merge", "reply")

WANTED = os.environ.get("FUSEOVERLAY_EXTENSION", "")
if WANTED not in ("", "required", "none"):
    raise SystemExit(f"FUSEOVERLAY_EXTENSION={WANTED}: it can be 'required' or 'none'")

setup(
    ext_modules=[
        Extension(
            "fuseoverlay.native._native",
            [f"fuseoverlay/native/csrc/{name}.c" for name in SOURCES],
            depends=["fuseoverlay/native/csrc/native.h"],
            extra_compile_args=["-O2", "-Wall", "-fvisibility=hidden"],
            # Without it everything works, slower.
            optional=WANTED != "required",
        )
    ]
    if WANTED != "none"
    else []
)
