"""The optional extension; everything else is in pyproject.toml.

FUSEOVERLAY_EXTENSION in the environment: `required` fails where it cannot be built, `none` does not
try; docs/packaging.md.
"""

import os
import sysconfig

from setuptools import Extension, setup

SOURCES = ("module", "filter", "answers", "listing", "real", "scan", "merge", "reply")

WANTED = os.environ.get("FUSEOVERLAY_EXTENSION", "")
if WANTED not in ("", "required", "none"):
    raise SystemExit(f"FUSEOVERLAY_EXTENSION={WANTED}: it can be 'required' or 'none'")

#: One build serves every Python from the oldest that we take on, but for those without the GIL.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")

EXTENSION = Extension(
    "fuseoverlay.native._native",
    [f"fuseoverlay/native/csrc/{name}.c" for name in SOURCES],
    depends=["fuseoverlay/native/csrc/native.h"],
    # Where it was built is in nothing that comes of it: two builds are the same.
    extra_compile_args=[
        *("-O2", "-Wall", "-fvisibility=hidden"),
        f"-ffile-prefix-map={os.getcwd()}=.",
    ],
    define_macros=[("Py_LIMITED_API", "0x030b0000")] if STABLE_ABI else [],
    py_limited_api=STABLE_ABI,
    # Without it everything works, slower.
    optional=WANTED != "required",
)

setup(
    ext_modules=[] if WANTED == "none" else [EXTENSION],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
