"""The inode table forgets what the kernel forgets, and keeps what leads to the rest."""

from __future__ import annotations

import stat
import weakref

import pytest

from fuseoverlay.overlay.inodes import Directory, File, Inode
from fuseoverlay.overlay.inodetable import InodeTable
from fuseoverlay.overlay.prepared import Prepared

#: Deeper than any call stack.
DEPTH = 200_000


def _table() -> InodeTable:
    return InodeTable(Prepared(), [1], None, ())


def _known(table: InodeTable, inode: Inode) -> None:
    table.add(inode)
    inode.nlookup = 1


def _directory(table: InodeTable, parent: Directory, name: bytes) -> Directory:
    directory = Directory(table.own_number(), parent, name, None, ())
    _known(table, directory)
    return directory


def _file(table: InodeTable, parent: Directory, name: bytes) -> File:
    file = File(table.own_number(), stat.S_IFREG)
    file.names[parent, name] = None
    _known(table, file)
    return file


def test_a_deep_chain() -> None:
    """A chain of directories stays whole while its end is known, and goes with it, however deep."""
    table = _table()
    chain = [table.root]
    for _ in range(DEPTH):
        chain.append(_directory(table, chain[-1], b"d"))
    file, last = _file(table, chain[-1], b"f"), weakref.ref(chain[-1])
    first, numbers = weakref.ref(chain[1]), [directory.ino for directory in chain[1:]]
    del chain
    for ino in numbers:
        assert table.forget(ino, 1) is not None
    assert len(table) == 2
    directory = last()
    assert directory is not None
    assert table.is_in_place(directory)
    assert table.names_of(file) == [(directory, b"f")]
    assert table.subdirectory(table.root, b"d") is first()
    del directory
    table.forget(file.ino, 1)
    del file
    assert first() is None
    assert last() is None
    assert table.subdirectory(table.root, b"d") is None
    assert len(table) == 1


@pytest.mark.parametrize("is_listed", [False, True])
def test_found_again(is_listed: bool) -> None:
    """It is found by name, with its old number unless another one has that."""
    table = _table()
    directory = _directory(table, table.root, b"d")
    number, other = directory.ino, File(directory.ino, stat.S_IFREG)
    if is_listed:
        listed = (directory, b"f", None, 1, stat.S_IFREG, False, 0)
        table.entries[7] = listed  # type: ignore[assignment]  # nobody asks for the real directory
        del listed
    else:
        _file(table, directory, b"f")
    table.forget(number, 1)
    weak = weakref.ref(directory)
    del directory
    found = table.subdirectory(table.root, b"d")
    assert found is not None
    assert found is weak()
    assert not table.knows(found)
    table.recall(found)
    assert table.get(number) is found
    table.drop_unused(found)
    _known(table, other)
    table.recall(found)
    assert table.get(number) is other
    assert found.ino != number
    assert table.get(found.ino) is found


def test_moved_and_replaced() -> None:
    """Objects below a directory that was replaced have no name any more."""
    table = _table()
    old = _directory(table, table.root, b"d")
    below = _directory(table, old, b"sub")
    file = _file(table, below, b"f")
    table.move(old, table.root, b"e")
    assert table.subdirectory(table.root, b"d") is None
    assert table.subdirectory(table.root, b"e") is old
    assert table.names_of(file) == [(below, b"f")]
    table.unname(old)
    assert not table.is_in_place(below)
    with pytest.raises(OSError, match="Stale"):
        table.names_of(file)
    new = _directory(table, table.root, b"e")
    table.unname(old)
    assert table.subdirectory(table.root, b"e") is new
    file.names.clear()
    assert table.names_of(file) == []
