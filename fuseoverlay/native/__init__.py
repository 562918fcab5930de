"""The optional C extension and the one module that loads it, `extension`.

Imports no other package. The sources are in `csrc`; docs/native.md says what it does and why.
"""
