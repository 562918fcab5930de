"""Image formats: read, verify and unpack them, write small ones.

Imports `system` and, of `layers`, only what has no layers in it (`xattrs`, `whiteout`,
`overridestat`, `trust`). Nothing here prints or knows of FUSE. Read `layout` and `unpack` first.
"""
