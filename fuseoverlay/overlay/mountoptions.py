"""Makes a `MountConfig` from the argument of `-o`.

`optionlist` knows the syntax of that list, `options` which options there are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from fuseoverlay.errors import UsageError
from fuseoverlay.layers import idmap
from fuseoverlay.layers.idmap import IdMap
from fuseoverlay.layers.whiteout import Dialect
from fuseoverlay.overlay import optionlist, options
from fuseoverlay.overlay.config import FOREVER, LONGEST_NAME, MountConfig
from fuseoverlay.overlay.options import Kind, Option
from fuseoverlay.system import syscalls

_PATH_KINDS: Final = (Kind.LOWERS, Kind.PATH, Kind.PATHS)
_PATHS: Final = {name for option in options.every() if option.kind in _PATH_KINDS
                 for name in option.names}  # fmt: skip
#: Words for the default, which libfuse does not know.
_NOT_PASSED: Final = ("rw", "async")
#: A decimal number in ASCII, as in C.
_SECONDS: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")
#: The kernel's minimum for `max_write`, bytes.
_LEAST_WRITE: Final = 4096
_ID_HINT: Final = "ids are numbers, mappings like 0:100000:65536"
#: Per `Option.follows`: the pattern of what may follow the name of an option without effect.
_FOLLOWS: Final = {"": "", "[=NAME]": "(=.*)?", "=TEXT": "=.*", "=N": "=[0-9]+",
                   "NAME[=VALUE]": ".*"}  # fmt: skip


class _Asked:
    """The options read so far; of options with one value the last one counts."""

    def __init__(self) -> None:
        #: Arguments for `MountConfig`.
        self.fields: dict[str, Any] = {}
        #: Values of `Kind.CHOICE`, as written.
        self.chosen: dict[str, str] = {}
        #: Words, by `Option.words` of their row of the table.
        self.flags: dict[str, str] = {}
        self.access_times: dict[str, str] = {}
        #: `NAME=VALUE`, by name.
        self.names: dict[str, str] = {}
        self.labels: dict[str, str] = {}


def parse(text: bytes) -> MountConfig:
    """Read the argument of `-o`. `config.check` checks that the directories needed are there.

    Raises `UsageError`.
    """
    asked = _Asked()
    ignored = []
    for written in optionlist.options(text, paths=_PATHS):
        if not _take(asked, written):
            ignored.append(os.fsdecode(optionlist.unescape(written)))
    fields = asked.fields
    redirects = asked.chosen.get("redirect_dir", "on")
    if fields.get("metacopy") and redirects != "on":
        raise UsageError(
            f"metacopy=on and redirect_dir={redirects} exclude each other",
            hint="copies find their data by redirects: use redirect_dir=on, or leave one out",
        )
    # ACLs are extended attributes.
    fields["noacl"] = fields.get("noacl", False) or fields.get("noxattrs", False)
    atime = _access_times(asked.access_times.values())
    passed = [flag for flag in asked.flags.values() if flag not in _NOT_PASSED]
    if atime & syscalls.MOUNT_ATTR_NOATIME:
        passed.append("noatime")
    return MountConfig(
        **{"lowerdirs": (), **fields},
        atime=atime,
        fuse_options=(*passed, *asked.names.values()),
        contexts=tuple(asked.labels.values()),
        ignored=tuple(ignored),
    )


def with_environment(config: MountConfig, environment: Mapping[str, str]) -> MountConfig:
    """The same with what the environment sets and no option does: whiteouts of the form `.wh.NAME`
    if FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT has any value, as in fuse-overlayfs."""
    if config.whiteout is None and "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT" in environment:
        return replace(config, whiteout=Dialect.OCI)
    return config


def _take(asked: _Asked, written: bytes) -> bool:
    """Take one option in; False: it is to be ignored."""
    name_b, equals, value_b = written.partition(b"=")
    name = os.fsdecode(name_b)
    option = options.find(name)
    if option is None:
        return False
    if option.kind in _PATH_KINDS:
        _take_path(asked, option, name, value_b)
        return True
    value = os.fsdecode(optionlist.unescape(value_b))
    if option.kind is Kind.NO_EFFECT:
        return _has_no_effect(option, name, os.fsdecode(equals) + value)
    return _TAKE[option.kind](asked, option, name, value.strip('"'))


def _take_path(asked: _Asked, option: Option, name: str, value: bytes) -> None:
    fields = asked.fields
    if option.kind is Kind.LOWERS:
        fields["lowerdirs"], fields["data_only"] = optionlist.lowers(value)
    elif option.kind is Kind.PATHS:
        before = fields.get(option.sets, ())
        fields[option.sets] = (*before, optionlist.path(name, value))
    else:
        fields[option.sets] = optionlist.path(name, value)


def _has_no_effect(option: Option, name: str, follows: str) -> bool:
    return re.fullmatch(_FOLLOWS[option.follows], follows, re.DOTALL) is not None


# One function for each other kind. Each returns False if the option is to be ignored.


def _switch(asked: _Asked, option: Option, name: str, value: str) -> bool:
    _refuse_value(name, value)
    asked.fields[option.sets] = True
    return True


def _flag(asked: _Asked, option: Option, name: str, value: str) -> bool:
    _refuse_value(name, value)
    said = asked.flags if option.kind is Kind.FLAG else asked.access_times
    said[option.words] = name
    return True


def _choice(asked: _Asked, option: Option, name: str, value: str) -> bool:
    choices = [*option.choices]
    if value not in choices:
        trouble = "unknown" if len(choices) > 1 else "not supported"
        raise UsageError(
            f"{name}={value} is {trouble}" if value else f"{name} needs a value",
            hint=f"use {_any_of([f'{name}={choice}' for choice in choices])}",
        )
    asked.chosen[name] = value
    if option.sets:
        asked.fields[option.sets] = option.choices[value]
    return True


def _seconds(asked: _Asked, option: Option, name: str, value: str) -> bool:
    if not _SECONDS.match(value):
        raise UsageError(f"{name}={value} is no number of seconds", hint=f"use {name}=1.5, say")
    # Longer times might not fit into the kernel's field, and make no difference.
    asked.fields[option.sets] = min(float(value), FOREVER)
    return True


def _bytes(asked: _Asked, option: Option, name: str, value: str) -> bool:
    if not re.fullmatch("[0-9]{4,9}", value) or int(value) < _LEAST_WRITE:
        raise UsageError(
            f"{name}={value} is no number of bytes that can be used",
            hint=f"use {name}=131072, say; the least is {_LEAST_WRITE}",
        )
    asked.fields[option.sets] = int(value)
    return True


def _ids(asked: _Asked, option: Option, name: str, value: str) -> bool:
    ids: IdMap = asked.fields.get(option.sets, idmap.NOTHING)
    try:
        if option.kind is Kind.ID:
            ids = replace(ids, squash=idmap.parse_id(value))
        else:
            ids = replace(ids, ranges=idmap.parse_ranges(value))
    except ValueError as exc:
        raise UsageError(f"{name}={value} {exc}", hint=_ID_HINT) from None
    asked.fields[option.sets] = ids
    return True


def _root(asked: _Asked, _: Option, name: str, value: str) -> bool:
    _refuse_value(name, value)
    for kind in ("uids", "gids"):
        ids: IdMap = asked.fields.get(kind, idmap.NOTHING)
        asked.fields[kind] = replace(ids, squash=ids.squash or 0)
    return True


def _name(asked: _Asked, _: Option, name: str, value: str) -> bool:
    _require_value(name, value)
    # pyfuse3 passes on ASCII only.
    if not value.isascii():
        return False
    if len(value) > LONGEST_NAME:
        raise UsageError(
            f"{name}= is {len(value)} characters long",
            hint=f"the kernel takes no names like that; use at most {LONGEST_NAME}",
        )
    asked.names[name] = f"{name}={value}"
    return True


def _label(asked: _Asked, _: Option, name: str, value: str) -> bool:
    _require_value(name, value)
    if not value.isascii():
        return False
    if '"' in value:
        raise UsageError(f"a quote inside the label of {name}=", hint="no label has one")
    # Quoted, so that the kernel takes commas as part of the label.
    asked.labels[name] = f'{name}="{value}"'
    return True


def _refused(_: _Asked, __: Option, name: str, ___: str) -> bool:
    raise UsageError(f"{name} is not possible", hint="unmount, and mount with other options")


_TAKE: Final[Mapping[Kind, Callable[[_Asked, Option, str, str], bool]]] = {
    Kind.SWITCH: _switch,
    Kind.CHOICE: _choice,
    Kind.SECONDS: _seconds,
    Kind.BYTES: _bytes,
    Kind.RANGES: _ids,
    Kind.ID: _ids,
    Kind.ROOT: _root,
    Kind.FLAG: _flag,
    Kind.ACCESS_TIMES: _flag,
    Kind.NAME: _name,
    Kind.LABEL: _label,
    Kind.REFUSED: _refused,
}


def _refuse_value(name: str, value: str) -> None:
    if value:
        raise UsageError(
            f"{name}={value}: {name} takes no value", hint=f"write {name}, or leave it out"
        )


def _require_value(name: str, value: str) -> None:
    if not value:
        raise UsageError(f"{name} needs a value", hint="give it one, or leave it out")


def _any_of(choices: Collection[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _access_times(flags: Iterable[str]) -> int:
    """The MOUNT_ATTR_* that mount(2) makes of these words: `strictatime` overrides `noatime`."""
    said = {*flags}
    attributes = syscalls.MOUNT_ATTR_NODIRATIME if "nodiratime" in said else 0
    if "strictatime" in said:
        return attributes | syscalls.MOUNT_ATTR_STRICTATIME
    if "noatime" in said:
        return attributes | syscalls.MOUNT_ATTR_NOATIME
    return attributes | syscalls.MOUNT_ATTR_RELATIME
