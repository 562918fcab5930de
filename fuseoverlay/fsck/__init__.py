"""`fuseoverlay fsck`: whether an upper and its work directory are what a mount left.

Reads the layers with the functions of the mount. Only repairs write, only to the upper and
the work directory, and none changes what a mount shows. Imports `overlay` and what is below. Read
`run` first.
"""
