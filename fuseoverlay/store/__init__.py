"""What is kept on this computer of images: each layer, unpacked once.

Imports `oci` and what is below.
"""
