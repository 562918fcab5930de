"""The POSIX table; its modules' assertions tell what they saw, as those of tests do."""

import pytest

#: The modules whose functions make up the table.
MODULES = (
    "opening", "data", "mapping", "making", "links", "removing", "renaming", "names",
    "attributes", "times", "users", "locks", "listing", "xattrs", "special",
)  # fmt: skip

for _name in (*MODULES, "table"):
    pytest.register_assert_rewrite(f"{__name__}.{_name}")
