"""The merged file system: inodes, look-up, copy-up and every change, without FUSE.

Imports `layers` and what is below. Read `owners` first, whose `Overlay` is the first argument of
every operation, then `inodes`, `lookup`, `realobject` and `copyup`.
"""
