"""`fuseoverlay fsck`: whether an upper and its work directory are what a mount left.

Reads the layers with the functions that mounts use. Only repairs write, and only to the upper and
the work directory; none changes what a mount shows. Imports `overlay` and the packages below it.
Read `run` first.
"""
