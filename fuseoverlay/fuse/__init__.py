"""How requests come in and answers go out; mounting, serving and the end of a mount.

Imports `overlay` and the packages below it; no other package imports pyfuse3. Read `operations`
first, then `mount`.
"""
