"""How the commands show what they found: sizes and ages as Docker writes them, tables, templates.

Knows nothing of images or mounts. Nothing here prints.
"""
