"""Shell patterns: what they fit, beside a plain reading of them, and that they take no time."""

from __future__ import annotations

import functools
import random
import re

import pytest

from fuseoverlay.view.patterns import expression


def fits(pattern: str, text: str) -> bool:
    return re.fullmatch(expression(pattern), text.encode("utf-8", "surrogateescape")) is not None


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("*.py", "a.py", True), ("*.py", "a.pyc", False), ("a?c", "aéc", True),
        ("?", "\udcff", True),
        ("[!a]*", "bc", True), ("[!a]*", "ac", False), ("[!a]", "é", True), ("[é]", "é", True),
        ("[!é]", "é", False), ("[b-d]", "c", True), ("[b-d]", "e", False), ("[z-a]", "m", False),
        ("[]", "[]", True), ("[!]", "[!]", True), ("[]a]", "]", True), ("[a-]", "-", True),
        ("[é-ü]", "é", True), ("a[", "a[", True), ("\\*", "*", True), ("\\*", "x", False),
        ("a.b", "axb", False), ("a\nb", "a\nb", True), ("usr/*/x", "usr/a/x", True),
        ("usr/*/x", "usr/a/b/x", False), ("usr/**/x", "usr/a/b/x", True), ("**", "a/b/c", True),
        ("**a*b", "a/xab", True), ("a**b*c", "axb/b.c", True), ("**/x", "a/b/x", True),
        ("a**", "a", True), ("", "", True), ("", "a", False), ("*", "a/b", False),
    ],
)  # fmt: skip
def test_what_fits(pattern: str, text: str, expected: bool) -> None:
    assert fits(pattern, text) is expected


def plain(pattern: str, text: str) -> bool:
    """The same by trying everything."""

    @functools.cache
    def at(i: int, j: int) -> bool:
        if i == len(pattern):
            return j == len(text)
        if pattern.startswith("**", i):
            return at(i + 2, j) or (j < len(text) and at(i, j + 1))
        if pattern[i] == "*":
            return at(i + 1, j) or (j < len(text) and text[j] != "/" and at(i, j + 1))
        if j == len(text):
            return False
        return (pattern[i] == text[j] or (pattern[i] == "?" and text[j] != "/")) and at(
            i + 1, j + 1
        )

    return at(0, 0)


def test_random_patterns() -> None:
    chance = random.Random(1)
    for _ in range(20_000):
        # Three stars in a row are two.
        pattern = re.sub(r"\*{3,}", "**", "".join(chance.choices("ab/*?*", k=chance.randrange(8))))
        text = "".join(chance.choices("ab/", k=chance.randrange(9)))
        assert fits(pattern, text) is plain(pattern, text), (pattern, text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "pattern", ["*a*a*a*a*a*b", "**a**a**a**a**b", "**a*a*a**a*b", "*" * 99 + "b"]
)
def test_no_name_keeps_anybody_busy(pattern: str) -> None:
    """With any freedom to choose, this would take years."""
    assert not fits(pattern, "a" * 4000)
