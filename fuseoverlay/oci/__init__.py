"""Container images: read them, unpack their layers into a store, write small ones.

Nothing here prints, and nothing here knows of FUSE: the command line calls
`fuseoverlay.oci.store` and gives the directories it gets to the overlay.
"""
