"""What this computer keeps of images: an OCI image layout, and each layer unpacked once.

`root` is the directory, `content` its blobs, `names` its names, `layers` what is unpacked, and
`images` what a person sees of all this. Imports `oci` and the packages below it.
"""
