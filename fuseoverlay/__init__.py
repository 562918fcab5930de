"""fuseoverlay: an overlay filesystem in user space, on pyfuse3 and trio.

`errors` is everybody's; docs/architecture.md says what the packages are and which may import which.
"""

__version__ = "0.1.0"
