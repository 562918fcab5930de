"""The merged index as a listing: stable positions, every entry once, no quadratic cost."""

from __future__ import annotations

import random
from typing import cast

import pytest

from fuseoverlay.layers.index import Index, Listing, LowerEntry
from fuseoverlay.layers.layer import RealDir

MANY = 100_000


class Counting(dict[bytes, int]):
    """A dictionary that counts look-ups."""

    asked = 0

    def get(self, *args: object) -> object:  # type: ignore[override]
        self.asked += 1
        return super().get(*args)  # type: ignore[call-overload]


def after(index: Index, cookie: int) -> tuple[bytes, int] | None:
    """The entry that follows the cookie, with its own cookie."""
    return next(index.following(cookie), None)


def _index(count: int) -> Index:
    return Index(Listing({b"%d" % number: False for number in range(count)}), {})


def _counted(index: Index) -> Counting:
    index._position_of = counting = Counting(index._position_of)
    return counting


def _listed(index: Index, cookie: int = 0) -> list[bytes]:
    names = []
    while (found := after(index, cookie)) is not None:
        name, cookie = found
        names.append(name)
    return names


def test_one_pass_looks_at_each_entry_once() -> None:
    index = _index(MANY)
    counting = _counted(index)
    names = _listed(index)
    assert len(names) == len(set(names)) == MANY
    assert counting.asked == MANY


def test_deleting_what_was_read() -> None:
    index = _index(MANY)
    counting = _counted(index)
    cookie, met = 0, 0
    while (found := after(index, cookie)) is not None:
        name, cookie = found
        index.remove(name)
        met += 1
    assert met == MANY
    assert counting.asked <= 4 * MANY


def test_deleting_the_first_and_starting_again() -> None:
    """Each pass starts from the beginning, and does not step over removed entries again."""
    index = _index(MANY)
    counting = _counted(index)
    while (found := after(index, 0)) is not None:
        index.remove(found[0])
    assert len(index) == 0
    assert counting.asked <= 6 * MANY


def test_creating_and_deleting_for_ever_keeps_it_small() -> None:
    index = _index(10)
    for number in range(MANY):
        index.put(b"temporary %d" % number, False)
        index.remove(b"temporary %d" % number)
    assert len(index._names) < 1000
    assert len(_listed(index)) == 10


@pytest.mark.parametrize("seed", range(20))
def test_what_stays_is_listed_once(seed: int) -> None:
    """Several listings, each at its own position, while names come, go and come back."""
    rng = random.Random(seed)
    index = _index(200)
    listings = [{"at": 0, "met": [], "before": set(index._position_of)} for _ in range(3)]
    gone: set[bytes] = set()
    for _ in range(3000):
        action = rng.random()
        if action < 0.4:
            listing = rng.choice(listings)
            found = after(index, listing["at"])
            if found is not None:
                listing["met"].append(found[0])
                listing["at"] = found[1]
        elif action < 0.7 and len(index):
            name = rng.choice(list(index._position_of))
            gone.add(name)
            if rng.random() < 0.5:
                index.remove(name)
            else:
                index.hide(name, oci=rng.random() < 0.5)
        else:
            index.put(b"%d" % rng.randrange(300), rng.random() < 0.5)
    for listing in listings:
        met = listing["met"] + _listed(index, listing["at"])
        stayed = listing["before"] - gone
        assert stayed <= set(met)
        assert all(met.count(name) == 1 for name in stayed)
    assert set(_listed(index)) == set(index._position_of)


def test_a_pass_ends_though_each_name_read_is_renamed() -> None:
    index = _index(100)
    cookie, met = 0, []
    while (found := after(index, cookie)) is not None:
        name, cookie = found
        met.append(name)
        index.remove(name)
        index.put(b"x" + name, False)
    assert met == [b"%d" % number for number in range(100)]
    assert len(_listed(index)) == 100


def test_cookies_are_positive_numbers_of_64_bits_for_ever() -> None:
    """Positions start again before they become too large, and every name keeps its order."""
    index = _index(5)
    index._next = (1 << 31) - 2
    for number in range(10):
        index.put(b"new%d" % number, False)
        cookie, names = 0, []
        while (found := after(index, cookie)) is not None:
            assert 0 < found[1] < 1 << 63
            names.append(found[0])
            cookie = found[1]
        assert names == [b"0", b"1", b"2", b"3", b"4", *(b"new%d" % n for n in range(number + 1))]
        assert index.visible.keys() == set(names)
    assert index._next < 100


def test_a_change_costs_the_same_in_a_large_directory() -> None:
    """Subdirectories are counted once, not after each change."""
    index = _index(MANY)
    assert index.subdirectories() == 0
    index._position_of = counting = Counting(index._position_of)
    index.upper = asked = Counting(index.upper)
    for number in range(100):
        index.put(b"new%d" % number, True)
        assert index.subdirectories() == 1
        index.remove(b"new%d" % number)
        assert index.subdirectories() == 0
    assert counting.asked + asked.asked < 1000


@pytest.mark.parametrize("seed", range(20))
def test_directories_are_counted_through_every_change(seed: int) -> None:
    rng = random.Random(seed)
    real = cast("RealDir", object())
    lower: dict[bytes, LowerEntry] = {b"%d" % n: (real,) if n % 2 else real for n in range(20)}
    index = Index(Listing({b"%d" % n: n % 3 == 0 for n in range(10, 30)}), lower)
    index.subdirectories()
    for _ in range(300):
        name = b"%d" % rng.randrange(40)
        if rng.random() < 0.5:
            index.put(name, rng.random() < 0.5)
        elif index.covers(name):
            index.hide(name, oci=rng.random() < 0.5)
        else:
            index.remove(name)
        found = [index.find(visible) for visible in index.visible]
        assert index.subdirectories() == sum(one.is_dir for one in found if one is not None)
