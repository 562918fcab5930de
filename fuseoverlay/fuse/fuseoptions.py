"""What libfuse, fusermount3 and mount(2) are told of a mount."""

from __future__ import annotations

import logging
import os

from fuseoverlay.layers import trust
from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.overlay.owners import Overlay

log = logging.getLogger("fuseoverlay")


def of(ov: Overlay) -> tuple[set[str], bool]:
    """Options for libfuse, and whether the kernel shall know ACLs.

    The kernel checks permissions by what is shown, as on any filesystem. The exception: a
    plain user who mounted with fusermount3 where owners are kept in
    `user.containers.override_stat`. Nothing shown belongs to him, yet all of it is his: unless
    others can get in, every access is granted.

    `allow_root` the kernel does not know: it would let everybody in, and give them what it has
    been told before libfuse could refuse them. Who is root need only keep the others out.

    ACLs are off wherever modes are kept in such an attribute, and with `noacl`: see
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
            # Users may have mounted what is below, and claim anything there.
            if f"no{name}" not in options and not ov.config.submounts:
                options.add(name)
    if "allow_root" in options:
        options -= {"allow_root", "allow_other"}
    elif root:
        options.add("allow_other")
    override = any(layer.override is not None for layer in ov.stack.all())
    if root or not override or "allow_other" in options:
        options.add("default_permissions")
    # libfuse takes an unescaped comma for the end of the option.
    escaped = {option.replace("\\", "\\\\").replace(",", "\\,") for option in options}
    return escaped, ov.identity.acls


def _labels(config: MountConfig, *, initial: bool) -> tuple[str, ...]:
    """SELinux labels for mount(2); none, and a warning, where they would fail the mount.

    `initial`: we are root of the first user namespace. In others the kernel refuses labels of
    a FUSE mount, security/selinux/hooks.c."""
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
