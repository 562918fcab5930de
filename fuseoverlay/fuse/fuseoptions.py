"""The options of a mount for libfuse, fusermount3 and mount(2)."""

from __future__ import annotations

import logging
import os

from fuseoverlay.layers import trust
from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.overlay.owners import Overlay

log = logging.getLogger("fuseoverlay")


def of(ov: Overlay) -> tuple[set[str], bool]:
    """The options for libfuse, and whether the kernel is to handle ACLs.

    The kernel checks permissions against the owners and modes that are shown, as on any filesystem.
    The exception is a plain user's mount by fusermount3 of layers that keep owners in
    `user.containers.override_stat`. Nothing that is shown belongs to that user, yet all of it is
    really theirs: every access is granted, unless others can get in.

    The kernel does not know `allow_root`: libfuse implements it by letting everybody in, and the
    kernel would answer others from its cache before libfuse could refuse them. If root mounts, it
    is enough to keep everybody else out.

    ACLs are off with `noacl` and wherever modes are kept in such an attribute: see
    `fuseoverlay.overlay`.
    """
    root = os.geteuid() == 0
    options = {"fsname=fuseoverlay", "subtype=fuseoverlay"}
    names = {option.partition("=")[0] for option in ov.config.fuse_options}
    options = {option for option in options if option.partition("=")[0] not in names}
    options.update(ov.config.fuse_options)
    if ov.workdir is None:
        options.add("ro")
    initial = trust.is_superuser()
    options.update(_labels(ov.config, initial=initial))
    if initial:
        for name in ("suid", "dev"):
            # Users may have mounted what is below the layers, and such a filesystem may claim
            # anything.
            if f"no{name}" not in options and not ov.config.submounts:
                options.add(name)
    if "allow_root" in options:
        options -= {"allow_root", "allow_other"}
    elif root:
        options.add("allow_other")
    override = any(layer.override is not None for layer in ov.stack.all())
    if root or not override or "allow_other" in options:
        options.add("default_permissions")
    # To libfuse an unescaped comma ends the option.
    escaped = {option.replace("\\", "\\\\").replace(",", "\\,") for option in options}
    return escaped, ov.identity.acls


def _labels(config: MountConfig, *, initial: bool) -> tuple[str, ...]:
    """SELinux labels for mount(2). Where they would make the mount fail: none, and a warning.

    `initial`: we are root of the first user namespace. In other namespaces the kernel refuses
    labels for a FUSE mount: security/selinux/hooks.c."""
    if not config.contexts:
        return ()
    reason = "only root may give a FUSE mount labels"
    if initial:
        with open("/proc/filesystems", encoding="ascii") as known:
            if any(line.split()[-1] == "selinuxfs" for line in known):
                return config.contexts
        reason = "the kernel has no SELinux"
    for label in config.contexts:
        log.warning("option %s is ignored: %s", label, reason)
    return ()
