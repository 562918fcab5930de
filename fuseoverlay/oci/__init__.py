"""Image formats: read, verify and unpack them, write small ones.

Imports `system` and, of `layers`, only modules that know nothing about layers (`xattrs`,
`whiteout`, `overridestat`, `trust`). Nothing here prints or knows about FUSE. Read `layout` and
`unpack` first.
"""
