"""A client of registries: the OCI distribution-spec 1.1, and docker's registries before it.

Imports `system` and, of `oci`, only the leaf modules `model`, `names` and `reference`. Nothing here
prints or writes to the disk, except that `login` keeps credentials. Importing `transport`, and so
`remote`, takes a tenth of a second: only what is about to ask a registry does. Read `remote` first.
"""
