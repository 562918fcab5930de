"""What this computer keeps of images: each layer, unpacked once.

Imports `oci` and the packages below it.
"""
