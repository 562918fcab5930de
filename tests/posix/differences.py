"""Where the filesystems may disagree, and why. Everything else must agree.

What is listed here is asserted as exactly as everything else: a difference that is no
more is a failure, and is to be taken out of the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.helpers.mounts import MODE, NATIVE

#: Functions of the table whose calls need a FUSE request that pyfuse3 has not, and the
#: errno that fuseoverlay gives for them without the extension.
NOT_IN_PYFUSE3: dict[str, str] = (
    {}
    if NATIVE
    else {
        "temporary_file": "EOPNOTSUPP",
        "allocate": "EOPNOTSUPP",
        "allocate_beyond_the_end": "EOPNOTSUPP",
        "punch_a_hole": "EOPNOTSUPP",
        "birth_time": "ENODATA",
        "inode_flags": "ENOTTY",
    }
)


@dataclass(frozen=True)
class Different:
    """What a function answers there instead, or its failure ("fails"), and the reason."""

    answer: Any
    reason: str
    origins: tuple[str, ...] = ("lower", "upper", "copied")
    modes: tuple[str, ...] = ("root", "user", "userns")


_OPEN_COPIES = "opening for writing copies up"
_DESCRIPTOR = "a descriptor opened before copy-up is one of the lower"
_TIMES = "copy-up of what is in a directory moves its change time"
_LINKS = "merged directories show 1, of others the overlay counts only what is in one layer"
_WHITEOUTS = "an overlay's whiteouts are its own: it makes none on demand"

_CTIME = {"ctime"}
#: Bytes that the overlay's note of a copy's origin takes in a list of names.
_ORIGIN = len(f"{'trusted' if MODE == 'root' else 'user'}.overlay.origin") + 1

#: By function and implementation.
DIFFERENT: dict[tuple[str, str], list[Different]] = {
    ("read_only_mapping_sees_later_writes", "kernel"): [
        Different(b"conte", _DESCRIPTOR, ("lower",)),
    ],
    ("unlinked_file_opened_for_reading", "kernel"): [Different(1, _DESCRIPTOR, ("lower",))],
    ("unlinked_fifo", "kernel"): [Different((b"through", 1), _DESCRIPTOR, ("lower",))],
    ("subdirectories_are_counted", "kernel"): [
        Different([2, 1, 1, 1, 1], _LINKS, ("lower",)),
        Different([1, 1, 1, 1, 1], _LINKS, ("copied",)),
    ],
    ("removed_directory_while_open", "kernel"): [
        Different(2, _LINKS, ("lower",)),
        Different(1, _LINKS, ("copied",)),
    ],
    ("replace_a_directory_that_is_open", "kernel"): [
        Different((2, ["child", "sub"]), _LINKS, ("lower",)),
        Different((1, ["child", "sub"]), _LINKS, ("copied",)),
    ],
    ("rename_leaving_a_whiteout", "kernel"): [Different("EINVAL", _WHITEOUTS)],
    ("rename_leaving_a_whiteout", "fuse"): [Different("EINVAL", _WHITEOUTS)],
    ("times_of_a_file_opened_to_write", "kernel"): [Different(_CTIME, _OPEN_COPIES, ("lower",))],
    ("times_of_write_below_a_directory", "kernel"): [Different(_CTIME, _TIMES, ("lower",))],
    ("times_of_chmod_below_a_directory", "kernel"): [Different(_CTIME, _TIMES, ("lower",))],
    ("times_of_create_far_below_a_directory", "kernel"): [Different(_CTIME, _TIMES, ("lower",))],
    ("times_of_failed_setxattr", "kernel"): [
        Different(_CTIME, "copies up before it asks whether the attribute is there", ("lower",)),
    ],
    ("attribute_list_buffers", "kernel"): [
        Different(
            (12 + _ORIGIN, 12, _ORIGIN),
            "asked for a size, it counts its own attributes",
            ("copied",),
        ),
    ],
    ("removed_access_list_leaves_a_mode", "kernel"): [
        Different(
            ("0o674", [None, "ENODATA"]),
            "looks into the lower before copying up for nothing",
            ("lower",),
        ),
    ],
    ("removed_access_list_leaves_a_mode", "fuse"): [
        Different(
            ("0o674", [None, "ENODATA"]),
            "as the kernel's overlay: looks into the lower before copying up for nothing",
            ("lower",),
        ),
    ],
    ("names_of_image_whiteouts", "fuse"): [
        Different("EINVAL", "they would be whiteouts in the next mount"),
    ],
    ("attribute_with_both_flags", "fuse"): [
        Different(("EEXIST", None), "pyfuse3 takes the first of the two flags only"),
    ],
    ("epoll_takes_no_files", "fuse"): [
        Different(None, "the kernel lets a FUSE file be polled, in case the daemon can"),
    ],
    ("open_without_access_time", "fuse"): [
        Different(
            True,
            "I/O is by inode, the upper file is read by the daemon as usual",
            ("upper", "copied"),
        ),
    ],
}

if not NATIVE:
    DIFFERENT["seek_finds_holes", "fuse"] = [
        Different([0, 2 << 20], "pyfuse3 has no lseek: the kernel says that all is data"),
    ]

#: Functions that rename a directory or link a file of a lower: in a user namespace kernel
#: overlayfs has neither redirect_dir nor index, and so answers EXDEV, and breaks hard links.
WANT_FEATURES = {
    "attributes_stay_with_the_object",
    "exchange_directories",
    "exchange_kinds",
    "flock_is_of_the_file_not_the_name",
    "link_an_open_file",
    "link_each_kind",
    "link_follows_on_demand",
    "link_of_a_link_of_a_link",
    "linked_fifo",
    "listing_a_renamed_directory",
    "listing_of_every_state",
    "make_under_the_old_name",
    "make_where_another_kind_was",
    "populated_directory_emptied_while_listing",
    "rename_a_tree",
    "rename_above_an_open_file",
    "rename_an_open_directory",
    "rename_between_two_names_of_a_file",
    "rename_each_kind",
    "rename_keeps_the_object",
    "rename_over_a_full_directory",
    "rename_populated_objects_over_new_ones",
    "rename_the_working_directory",
    "rename_there_and_back",
    "rename_with_slash",
    "replace_a_directory_that_is_open",
}

#: Functions that fail with fuseoverlay: known limitations, to be mended.
LIMITATIONS: dict[str, str] = (
    {}
    if NATIVE
    else {
        "default_list_takes_the_umasks_place": "no FUSE_DONT_MASK: the umask is applied before",
    }
)
