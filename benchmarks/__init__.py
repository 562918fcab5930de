"""Benchmarks: fuseoverlay against other overlay filesystems. Run with `scripts/bench`."""
