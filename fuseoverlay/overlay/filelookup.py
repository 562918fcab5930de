"""The file at a visible name: its inode, the real object behind it, and where its data is.

Source: kernel Documentation/filesystems/overlayfs.rst, "Inode properties" and "Metadata only copy
up".
"""

from __future__ import annotations

import errno
import os
import stat

from fuseoverlay.errors import no_entry
from fuseoverlay.layers import redirect, whiteout, xattrs
from fuseoverlay.layers.index import Found, Index
from fuseoverlay.layers.layer import Lower, Place
from fuseoverlay.layers.objects import sighting, stat_key
from fuseoverlay.overlay import hardlinks, renewal
from fuseoverlay.overlay.inodes import Directory, File, Held
from fuseoverlay.overlay.owners import Overlay
from fuseoverlay.overlay.realobject import Real, pinned_at, real_at, real_by, real_of
from fuseoverlay.system.syscalls import at


def file_of(
    ov: Overlay, parent: Directory, index: Index, name: bytes, found: Found
) -> tuple[File, Real]:
    """The file that was `found` at a visible name of the directory with this index, and the real
    object behind it. ENOENT if it turns out to be a whiteout; errors of the layers."""
    directory = parent.upper if found.in_upper else found.lower_file
    if directory is None:
        raise no_entry(name)
    place = Place(directory, name)
    if found.in_upper:
        return _file_at(ov, parent, index, place, found, real_at(ov, place), None)
    with pinned_at(ov, place, None) as lower:
        real = real_by(lower)
        if directory.layer.override is not None:
            kept = ov.identity.stored(directory.layer, real.path, real.st, follow=True)
            real = real._replace(stored=kept)
        return _file_at(ov, parent, index, place, found, real, lower)


def _file_at(
    ov: Overlay, parent: Directory, index: Index, place: Place, found: Found, seen: Real,
    lower: Lower | None,
) -> tuple[File, Real]:  # fmt: skip
    """The file whose real object `seen` is at the place; `lower`: that object pinned, if it is in
    a lower."""
    (real, name), st = place, seen.st
    # In a lower only regular files have marks that matter here: xattr whiteout and metacopy.
    marked = (found.in_upper or stat.S_ISREG(st.st_mode)) and xattrs.is_marked(
        seen.path, real.layer.namespaces, follow=seen.follow
    )
    # Check this even if the directory is not marked as holding xattr whiteouts, as the kernel does.
    if marked and whiteout.is_xattr_whiteout(ov.stack.fd(real), name, real.layer.namespaces, st):
        index.conceal(name)
        raise no_entry(name)
    file, alone = _known_file(ov, parent, place, found, st, lower)
    if file is None:
        if lower is None:
            file = _upper_file(ov, place, found, seen, marked=marked)
        else:
            file = _lower_file(ov, place, seen, lower, (parent, name) if alone else None)
        if file.in_upper and lower is not None:
            _find_copied_data(ov, parent, file, place, seen)
        elif marked:
            _find_data(ov, parent, file, place, seen)
    if found.in_upper and file.upper is None:
        file.upper = place
        if file.held is not None:
            ov.inodes.let_go(file)
            # The first status counted the name in the work directory that held the object.
            st = os.stat(name, dir_fd=ov.stack.fd(real), follow_symlinks=False)
    file.names[parent, name] = None
    if not found.in_upper:
        # This name is known to lead to the file now; others may not any more.
        file.lower = place
    if file.in_upper and not found.in_upper:
        # The index of hard links leads to a copy, which counts.
        return file, real_of(ov, file)
    return file, Real(real.layer, at(ov.stack.fd(real), name), False, st, seen.stored)


def _known_file(
    ov: Overlay, parent: Directory, place: Place, found: Found, st: os.stat_result,
    lower: Lower | None,
) -> tuple[File | None, bool]:  # fmt: skip
    """The file with this status, if the kernel knows it; and whether this name is a file of its
    own, apart from the other names."""
    name, key = place.name, stat_key(st)
    alone = lower is not None and not hardlinks.stay_together(ov, lower)
    file = ov.inodes.find_alone(parent, name) if alone else ov.inodes.find(key)
    if file is None or found.in_upper:
        return file, alone
    if (parent, name) not in file.names and _is_elsewhere(file, place, st):
        alone, file = True, ov.inodes.find_alone(parent, name)
    if file is not None and _is_another(ov, file, key, st):
        if not alone:
            ov.inodes.unbind(key)
        file = None
    return file, alone


def _is_another(ov: Overlay, file: File, key: tuple[int, int], st: os.stat_result) -> bool:
    """Whether the lower file with this status is another one than `file`, whose inode number it
    has got."""
    if ov.config.private or file.in_upper:
        return file.lower_seen != sighting(st)
    return renewal.is_gone(ov, file, key)


def _is_elsewhere(file: File, place: Place, st: os.stat_result) -> bool:
    """Whether the lower file at `place` has only one name while `file`, with the same inode number,
    is known at another place. Then one of the places is in a bind mount, and they are two files
    here, as after a copy-up; or the other name has been removed and the number reused."""
    known = file.lower
    if st.st_nlink > 1 or known is None or known == place:
        return False
    same_name = known.name == place.name and known.real.layer is place.real.layer
    return not (same_name and known.real.path() == place.real.path())


def _find_data(ov: Overlay, parent: Directory, file: File, place: Place, seen: Real) -> None:
    """Find the data of a metacopy file. EPERM without `metacopy=on`: somebody who can write to a
    layer could use metacopy files to expose data that others may not read."""
    if not stat.S_ISREG(seen.st.st_mode):
        return
    try:
        if redirect.is_metacopy(place, seen.path, follow=seen.follow):
            _need_metacopy(ov, place)
            _take_data(ov, parent, file, place, seen)
    except OSError:
        ov.inodes.drop_unused(file)
        raise


def _take_data(ov: Overlay, parent: Directory, file: File, place: Place, seen: Real) -> None:
    """Set where the data of the metacopy file `seen` is. ESTALE if the upper's metacopy was made
    from another file than the one found: it would show data with another file's owner and mode."""
    origin = None
    if ov.config.index and seen.layer.number == 0:
        counted = seen.layer.namespaces
        origin = xattrs.get_overlay(
            seen.path, xattrs.ORIGIN, counted, follow=seen.follow, upper=True
        )

    def fits(lower: Lower) -> bool:
        return origin is None or hardlinks.may_be_origin(lower, origin)

    file.data, st = redirect.data_of(
        ov.stack, parent.lowers, place, seen.path, follow=seen.follow, fits=fits
    )
    file.data_seen = sighting(st)


def _find_copied_data(ov: Overlay, parent: Directory, file: File, place: Place, seen: Real) -> None:
    """The same for a copy to which the index of hard links leads from the lower file at `place`: if
    the copy is a metacopy, the data of the lower file counts."""
    if file.data is not None or file.held is None or not stat.S_ISREG(file.kind):
        return
    try:
        copy = real_of(ov, file)
        counted = copy.layer.namespaces
        if xattrs.get_overlay(copy.path, xattrs.METACOPY, counted, follow=copy.follow) is None:
            return
        _need_metacopy(ov, place)
        if redirect.is_metacopy(place, seen.path, follow=seen.follow):
            _take_data(ov, parent, file, place, seen)
        else:
            file.data, file.data_seen = place, sighting(seen.st)
    except OSError:
        ov.inodes.drop_unused(file)
        raise


def _need_metacopy(ov: Overlay, place: Place) -> None:
    if not ov.config.metacopy:
        why = "its data is elsewhere: that counts only with metacopy=on"
        raise redirect.refused(place.real, place.name, errno.EPERM, why)


def _upper_file(ov: Overlay, place: Place, found: Found, seen: Real, *, marked: bool) -> File:
    st = seen.st
    origin = _origin(ov, place, found, st) if marked else None
    key = stat_key(st)
    lower_links = origin.st_nlink if origin else 0
    path = at(ov.stack.fd(place.real), place.name)
    links = hardlinks.indexed_links(ov, path, st, lower_links)
    # Without the index, a lower file's number belongs to its names that are still in the lower.
    if origin is not None and (lower_links == 1 or links):
        number = ov.inodes.number(stat_key(origin))
    else:
        number = ov.inodes.number(key)
    file = File(number, _kind(ov, seen))
    file.links = links
    ov.inodes.add(file)
    ov.inodes.bind(file, key)
    if file.links and origin is not None:
        ov.inodes.bind(file, stat_key(origin))
        file.lower_seen = sighting(origin)
    return file


def _lower_file(
    ov: Overlay, place: Place, seen: Real, lower: Lower, alone: tuple[Directory, bytes] | None
) -> File:
    """Add the lower file at the place. `alone`: this name, if it is a file of its own, apart from
    the other names."""
    st = seen.st
    key = stat_key(st)
    linked = hardlinks.may_be_indexed(st) and alone is None
    copy = hardlinks.find_copy(ov, lower) if linked else None
    if copy is None:
        number = ov.inodes.number(key) if alone is None else ov.inodes.number_apart(*alone, key)
        file = File(number, _kind(ov, seen))
        if linked:
            file.hidden = hardlinks.hidden_names(ov, lower)
        ov.inodes.add(file)
    else:
        file = _indexed_file(ov, seen, copy)
    file.lower, file.lower_seen = place, sighting(st)
    if alone is None:
        ov.inodes.bind(file, key)
    else:
        ov.inodes.bind_alone(file, alone)
    return file


def _indexed_file(ov: Overlay, seen: Real, copy: Held) -> File:
    """The file that is the copy, made when another name of the lower file was copied up."""
    copy_st = os.stat(copy.name, dir_fd=copy.fd, follow_symlinks=False)
    known = ov.inodes.find(stat_key(copy_st))
    if known is not None:
        return known
    file = File(ov.inodes.number(stat_key(seen.st)), _kind(ov, seen))
    path, counted = at(copy.fd, copy.name), ov.writable().upper.namespaces
    file.links = hardlinks.stored_links(path, copy_st, seen.st.st_nlink, counted, follow=False)
    ov.inodes.hold(file, copy)
    ov.inodes.add(file)
    ov.inodes.bind(file, stat_key(copy_st))
    return file


def _origin(ov: Overlay, place: Place, found: Found, st: os.stat_result) -> os.stat_result | None:
    """The status of the lower file that the upper one with the status `st` was copied from.

    `overlay.origin` distinguishes a copy from a new file in the same place. Mostly the lower file
    is right below; that of a renamed copy is found by its handle, if we may open handles.
    """
    path = at(ov.stack.fd(place.real), place.name)
    stored = xattrs.get_overlay(path, xattrs.ORIGIN, place.real.layer.namespaces, upper=True)
    if stored is None:
        return None
    if found.lower_file is not None:
        with pinned_at(ov, Place(found.lower_file, place.name), None) as lower:
            if stored == hardlinks.origin_of(lower):
                return lower.st
    origin = hardlinks.find_origin(ov, stored)
    same_type = origin is not None and stat.S_IFMT(origin.st_mode) == stat.S_IFMT(st.st_mode)
    return origin if same_type else None


def _kind(ov: Overlay, seen: Real) -> int:
    stored = seen.stored
    if stored is None:
        stored = ov.identity.stored(seen.layer, seen.path, seen.st, follow=seen.follow)
    return stat.S_IFMT(stored.mode)
