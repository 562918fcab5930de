"""The optional C extension: `loader` loads it, `extension` calls it, `terms` negotiates with the
kernel.

Imports no other package. The sources are in `csrc`; docs/native.md says what it does and why.
"""
