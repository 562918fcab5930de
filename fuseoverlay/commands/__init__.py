"""The command line; nothing else prints.

Imports everything. Read `dispatch` first. Mounting directories loads nothing that only images
need.
"""
