"""Every reason why fuseoverlay and the kernel differ by design."""

from __future__ import annotations

from tests.differential.table import Design

SEEN = ("calls", "tree", "remount", "ours elsewhere", "others' here")
ALL = (*SEEN, "upper")

LATE = Design(
    "copy-up: opening for writing, or locking, copies nothing; the first change does",
    ALL,
)
FRESH = Design("a mapping from before copy-up sees the current file", ("calls",))
KEPT = Design(
    "hard links survive copy-up in a user namespace, where the kernel breaks them",
    ALL,
    ("userns",),
)
KEPT_ASIDE = Design(
    "removing one name of a lower file with several copies nothing; where the count is kept "
    "the kernel does not look",
    ("ours elsewhere",),
    ("on",),
)
NO_NAMES = Design(
    "an open file or directory without a name has no links; the kernel goes on saying what a "
    "lower one, or a removed directory, had",
    ("calls",),
)
COUNT = Design("a directory's link count is the true one; the kernel says 1", ("calls",))
HIDDEN = Design(
    "a whiteout in an opaque directory, or in a directory of a single lower, is not listed; "
    "the kernel lists it and stat fails",
    SEEN,
)
XATTR_WHITEOUTS = Design(
    "a directory from which everything was removed can be removed itself; the kernel takes "
    "whiteouts by attribute for content",
    ALL,
)
OCI = Design(
    "names that begin with .wh. cannot be made: they would be whiteouts in the next mount", ALL
)
NAMESPACES = Design(
    "overlay attributes of both namespaces are the overlay's own; to the kernel those of the "
    "namespace that the mount does not use are ordinary",
    ("upper", "ours elsewhere", "others' here"),
)
UMASK = Design(
    "the umask counts beside a default ACL: the kernel's FUSE applies it before asking",
    ALL,
    extension=False,
)
NO_TRACE_REASON = (
    "a rename that fails with ENOTEMPTY has changed nothing; the kernel has by then copied up "
    "and changed the parent's times"
)
NO_TRACE_ASPECTS = ("tree", "upper", "remount", "ours elsewhere", "others' here")
NO_TRACE = Design(NO_TRACE_REASON, NO_TRACE_ASPECTS)
#: Of directories that are refused before that without redirect_dir=on.
NO_TRACE_OF_MERGED = Design(NO_TRACE_REASON, NO_TRACE_ASPECTS, ("on",))
LONG_PATH = Design(
    "where the path of the data does not fit in overlay.redirect the data is copied; the kernel "
    "can do with the name alone",
    ("upper",),
    ("on",),
)
TYPES_FIRST = Design(
    "what is both protected and of the wrong type is refused for its type, which the kernel's "
    "FUSE looks at before asking",
    ("calls",),
)
OPENED = Design(
    "an immutable or append-only file can be opened for writing, with the extension: what it "
    "forbids is refused when it is tried",
    ("calls",),
    extension=True,
)
TOUCH = Design(
    "an append-only file cannot be touched: pyfuse3 does not say whether a time is given or now",
    ALL,
    extension=False,
)
RENUMBERED = Design(
    "a copy keeps its number; in a user namespace the kernel may not follow file handles, and it "
    "gets another",
    ("calls",),
    ("userns",),
)
FOLLOWED = Design(
    "redirects are followed in a user namespace too, where the kernel refuses them",
    SEEN,
    ("userns",),
)
UNWRITABLE = Design(
    "removing a security attribute that is not there is ENODATA; in a user namespace EPERM on "
    "what was copied up",
    ("calls",),
    ("userns",),
)
REFUSED = Design(
    "a directory whose redirect may not be followed is listed; in a directory marked impure the "
    "kernel leaves it out",
    ("tree", "remount", "ours elsewhere", "others' here", "calls"),
    ("nofollow",),
)
FUSE_MODES = Design(
    "fallocate collapses and inserts no ranges: the kernel's FUSE refuses without asking",
    ALL,
)
PYFUSE3 = Design("pyfuse3 has no handler for it", ALL, extension=False)
