"""Image formats: read, verify, unpack and list them, write small ones.

Imports `system` and, of `layers`, only modules that know nothing about layers (`xattrs`,
`whiteout`, `overridestat`, `trust`). Nothing here prints or knows about FUSE. Read `layout` and
`layer` first.
"""
