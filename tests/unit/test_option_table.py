"""The table of mount options agrees with itself, with the parser and with `MountConfig`."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

import pytest

from fuseoverlay.errors import UsageError
from fuseoverlay.overlay import mountoptions, options
from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.overlay.options import Kind, Option

ROWS = {option.names[0]: option for option in options.every()}
#: A value that a user could give, for each form of value in the documents.
VALUES = {
    "=A:B:...": "=/a:/b", "=DIR": "=/a", "=FILE": "=/a", "=SECONDS": "=1.5", "=BYTES": "=8192",
    "=C:H:N[:C:H:N...]": "=0:1000:10", "=ID": "=5", "=LABEL": "=a:b:c", "=NAME": "=a",
    "[=NAME]": "=a", "NAME[=VALUE]": "a=b", "=TEXT": "=a b", "=N": "=4", "": "",
}  # fmt: skip


def _lists(option: Option) -> list[bytes]:
    """Each name with each of its values."""
    values = [f"={choice}" for choice in option.choices] or [VALUES[option.follows]]
    return [f"{name}{value}".encode() for name in option.names for value in values]


def test_no_name_is_in_two_rows() -> None:
    names = Counter(name for option in options.every() for name in option.names)
    assert [name for name, rows in names.items() if rows > 1] == []


@pytest.mark.parametrize("name", ROWS)
def test_what_is_in_the_table_is_understood(name: str) -> None:
    option = ROWS[name]
    for text in _lists(option):
        if option.kind is Kind.REFUSED:
            with pytest.raises(UsageError):
                mountoptions.parse(text)
        else:
            assert mountoptions.parse(text).ignored == (), text


@pytest.mark.parametrize("name", [name for name in ROWS if not name.endswith("-")])
def test_what_is_not_in_the_table_is_not(name: str) -> None:
    for text in (f"{name}x", f"no-{name}", name.upper()):
        assert mountoptions.parse(text.encode()).ignored == (text,)


@pytest.mark.parametrize("name", [name for name, option in ROWS.items() if option.sets])
def test_the_field_is_set(name: str) -> None:
    """At least one of the values sets the field to another value than without the option."""
    option = ROWS[name]
    assert option.sets in {field.name for field in fields(MountConfig)}
    kept = getattr(MountConfig(lowerdirs=()), option.sets)
    assert any(getattr(mountoptions.parse(text), option.sets) != kept for text in _lists(option))


@pytest.mark.parametrize("name", [name for name, option in ROWS.items() if option.choices])
def test_the_default_is_that_of_the_mount(name: str) -> None:
    option = ROWS[name]
    if option.sets:
        kept = getattr(MountConfig(lowerdirs=()), option.sets)
        assert option.choices.get(option.default) == kept
    else:
        assert option.default == ""


def test_what_has_no_effect_changes_nothing() -> None:
    for option in options.every():
        if option.kind is Kind.NO_EFFECT:
            for text in _lists(option):
                assert mountoptions.parse(text) == mountoptions.parse(b"")
