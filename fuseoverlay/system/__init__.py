"""What Linux offers and `os` lacks: system calls, file handles, ACLs, copies of mounts, threads.

Knows nothing of overlays and imports no other package. Read `syscalls` first.
"""
