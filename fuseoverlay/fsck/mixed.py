"""Whether one upper holds two dialects: a reader of only one of them sees another tree."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from fuseoverlay.fsck.hiding import Hiding
from fuseoverlay.fsck.objects import Objects
from fuseoverlay.fsck.problems import Kept, Kind, Problem, shown
from fuseoverlay.layers import whiteout, xattrs
from fuseoverlay.layers.layer import Place, RealDir
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.overlay.copymetadata import times_kept
from fuseoverlay.system.syscalls import fd_path


def problems(
    objects: Objects, hiding: Hiding, *, preferred: Dialect | None, userxattr: bool
) -> Iterator[Problem]:
    """What the walk of the upper has met in several dialects; the walk has to be over.

    `preferred` and `userxattr` are the mount options.
    """
    if objects.uncounted is not None:
        path, attribute = objects.uncounted
        yield Problem(
            Kind.UNCOUNTED, path,
            f"its overlay attributes, {shown(attribute)} for one, do not count without userxattr",
            why="name userxattr in -o, as for an upper that a plain user wrote",
        )  # fmt: skip
    if len(objects.namespaces) > 1:
        yield Problem(
            Kind.MIXED, objects.path(objects.root),
            "attributes of several namespaces: "
            + _listed((name.decode(), path) for name, path in objects.namespaces.items()),
            why="the kernel reads one namespace, fuseoverlay all",
        )  # fmt: skip
    met = {dialect: objects.path(*places[0]) for dialect, places in hiding.whiteouts.items()}
    if hiding.opaque_files:
        met.setdefault(Dialect.OCI, objects.path(hiding.opaque_files[0], whiteout.WH_OPAQUE))
    if len(met) > 1:
        convertible = set(met) == {Dialect.CHAR, Dialect.OCI} and preferred is not Dialect.OCI
        # Marks that we make would not count for the program that made the others.
        convertible = convertible and objects.uncounted is None
        yield Problem(
            Kind.MIXED, objects.path(objects.root),
            "whiteouts in several dialects: "
            + _listed((dialect.value, path) for dialect, path in met.items()),
            repair=(lambda: _convert(objects, hiding, userxattr)) if convertible else None,
            why="only `.wh.` names beside character devices are converted, to those, where "
            "the attributes count",
        )  # fmt: skip


def _listed(first: Iterable[tuple[str, bytes]]) -> str:
    return ", ".join(f"{what} (first at {shown(path)})" for what, path in first)


def _convert(objects: Objects, hiding: Hiding, userxattr: bool) -> None:
    """Convert OCI whiteouts and opaque marks to the kernel's dialect. Raises `Kept` if one cannot
    be."""
    stack = objects.stack
    kernels = (xattrs.TRUSTED, xattrs.USER)
    namespace = next((name for name in kernels if name in objects.namespaces), None)
    if namespace is None:
        root_fd = stack.fd(objects.root)
        namespace = xattrs.USER if userxattr else whiteout.best_namespace(root_fd)
    kept = [place for place in hiding.whiteouts.get(Dialect.OCI, ()) if not _to_char(stack, place)]
    kept += [
        Place(real, whiteout.WH_OPAQUE)
        for real in hiding.opaque_files
        if not _to_mark(stack, real, namespace)
    ]
    if kept:
        more = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
        raise Kept(f"{shown(objects.path(*kept[0]))}{more} cannot be converted")


def _to_char(stack: LayerStack, place: Place) -> bool:
    """Make the new whiteout, then remove the old one. False: another object has the name."""
    target = whiteout.oci_target(place.name)
    if target is None:
        return False
    fd = stack.fd(place.real)
    with times_kept(fd):
        try:
            whiteout.make(Dialect.CHAR, fd, target, xattrs.USER)
        except FileExistsError:
            if not whiteout.is_char_whiteout(os.stat(target, dir_fd=fd, follow_symlinks=False)):
                return False
        os.unlink(place.name, dir_fd=fd)
    return True


def _to_mark(stack: LayerStack, real: RealDir, namespace: bytes) -> bool:
    """Mark the directory, then remove `.wh..wh..opq`. False: it has an opaque mark of another
    value."""
    fd = stack.fd(real)
    if whiteout.opaque_value(fd, real.layer.namespaces) not in (None, whiteout.OPAQUE_YES):
        return False
    with times_kept(fd):
        os.setxattr(fd_path(fd), namespace + xattrs.OPAQUE, whiteout.OPAQUE_YES)
        os.unlink(whiteout.WH_OPAQUE, dir_fd=fd)
    return True
