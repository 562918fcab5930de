"""The commands that look into layers: one module for each, `words` says which.

`subject` says what they look into.
"""
