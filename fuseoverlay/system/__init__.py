"""What Linux offers and `os` lacks: system calls, file handles, ACLs, copies of mounts, threads.

Knows nothing about overlays and imports no other package except `errors`. Read `syscalls` first.
"""
