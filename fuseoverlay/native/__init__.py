"""The optional C extension: `loader` loads it, `extension` calls it, `terms` handles INIT.

Imports no other package. The sources are in `csrc`; docs/native.md says what it does and why.
"""
