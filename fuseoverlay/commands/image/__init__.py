"""The commands for the images of the store: `fuseoverlay image ls`, and Docker's own spellings.

One module for each command. Read `words` first, which says which words lead where.
"""
