"""fuseoverlay: an overlay filesystem in user space, on pyfuse3 and trio."""

__version__ = "0.1.0"
