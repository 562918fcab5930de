"""The command line; no other package prints.

Imports everything. Read `dispatch` first. Mounting directories loads nothing that only images
need.
"""
