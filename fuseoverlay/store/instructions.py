"""Instructions of a Dockerfile that change the config of an image, for `import --change`.

Source: Docker's reference of the Dockerfile; where that is vague, what its daemon does.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fuseoverlay.errors import UsageError
from fuseoverlay.oci import model

#: The `config` of an image.
Config = dict[str, Any]

_SPACE: Final = re.compile(r"[ \t]+")
_CONTINUED: Final = re.compile(r"\\[ \t]*\n")
_VARIABLE: Final = re.compile(r"\$(?:(\w+)|\{(\w+)(?::([-+])((?:[^{}\\]|\\.)*))?\})", re.ASCII)
_PORT: Final = re.compile(r"(?:[^/]*:)?(\d+)(?:-(\d+))?(?:/(\w+))?\Z", re.ASCII)
_PROTOCOLS: Final = ("tcp", "udp", "sctp")
_MAX_PORT: Final = 65535
_SHELL: Final = ["/bin/sh", "-c"]


def apply(config: Config, lines: Sequence[str]) -> None:
    """Change `config` as the instructions say, each in turn. UsageError."""
    for text in lines:
        found = [line.strip() for line in _CONTINUED.sub(" ", text).split("\n")]
        instructions = [line for line in found if line and not line.startswith("#")]
        if not instructions:
            raise _wrong(text, "there is no instruction in it")
        for line in instructions:
            word, *rest = _SPACE.split(line, maxsplit=1)
            change = _CHANGES.get(word.upper())
            if change is None:
                known = ", ".join(sorted(_CHANGES))
                raise _wrong(line, f"not an instruction that can be given here; there are {known}")
            change(config, rest[0] if rest else "", line)


def _wrong(line: str, what: str) -> UsageError:
    return UsageError(f"--change {model.short(line)}: {what}", hint="write it as in a Dockerfile")


# words


def _words(text: str) -> list[str]:
    """Split at blanks that are not quoted. Quotes stay."""
    return re.findall(r"""(?:\\.|"(?:\\.|[^"\\])*"|'[^']*'|[^\s])+""", text, re.DOTALL)


def _plain(config: Config, text: str, line: str) -> str:
    """A word without quotes, its variables replaced by what the image's environment has."""
    environment = dict(item.partition("=")[::2] for item in config.get("Env") or [])
    found, at, quoted = [], 0, False
    while at < len(text):
        char = text[at]
        if char == "'" and not quoted:
            end = text.find("'", at + 1)
            if end < 0:
                raise _wrong(line, "a quote is not closed")
            found.append(text[at + 1 : end])
            at = end + 1
        elif char == '"':
            quoted = not quoted
            at += 1
        elif char == "\\":
            # In quotes it stands for itself unless it keeps something from being special.
            after = text[at + 1 : at + 2]
            found.append(after if not quoted or after in '"$\\' else char + after)
            at += 2
        elif char == "$" and (match := _VARIABLE.match(text, at)):
            found.append(_value(match, environment))
            at = match.end()
        else:
            found.append(char)
            at += 1
    if quoted:
        raise _wrong(line, "a quote is not closed")
    return "".join(found)


def _value(match: re.Match[str], environment: Mapping[str, str]) -> str:
    name, how, other = match[1] or match[2], match[3], match[4]
    value = environment.get(name, "")
    if how is None:
        return value
    return (value or other) if how == "-" else (other if value else "")


def _pairs(config: Config, text: str, line: str) -> list[tuple[str, str]]:
    """`NAME=VALUE ...`, or `NAME VALUE` with blanks in the value."""
    words = _words(text)
    if not words:
        raise _wrong(line, "at least one NAME=VALUE is needed")
    if "=" not in words[0]:
        name, *rest = _SPACE.split(text, maxsplit=1)
        if not rest:
            raise _wrong(line, f"{name} has no value")
        words = [f"{name}={rest[0]}"]
    found = []
    for word in words:
        if "=" not in word:
            raise _wrong(line, f"there is no = in {word}")
        name, _, value = word.partition("=")
        found.append((_plain(config, name, line), _plain(config, value, line)))
    if not all(name for name, _ in found):
        raise _wrong(line, "a name is empty")
    return found


def _array(text: str, line: str) -> list[str] | None:
    """A JSON array of text; None if it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, list):
        return None
    if not all(isinstance(item, str) for item in found):
        raise _wrong(line, "the array may hold only text")
    return found


def _one(config: Config, text: str, line: str) -> str:
    if not text:
        raise _wrong(line, "an argument is needed")
    return _plain(config, text, line)


# instructions


def _cmd(config: Config, text: str, line: str) -> None:
    found = _array(text, line)
    config["Cmd"] = [*_SHELL, *([text] if text else [])] if found is None else found


def _entrypoint(config: Config, text: str, line: str) -> None:
    found = _array(text, line)
    config["Entrypoint"] = [*_SHELL, *([text] if text else [])] if found is None else found or None


def _env(config: Config, text: str, line: str) -> None:
    listed: list[str] = config.setdefault("Env", [])
    for name, value in _pairs(config, text, line):
        same = [at for at, item in enumerate(listed) if item.partition("=")[0] == name]
        if same:
            listed[same[0]] = f"{name}={value}"
        else:
            listed.append(f"{name}={value}")


def _label(config: Config, text: str, line: str) -> None:
    config.setdefault("Labels", {}).update(_pairs(config, text, line))


def _expose(config: Config, text: str, line: str) -> None:
    words = [word for item in _words(text) for word in _plain(config, item, line).split()]
    if not words:
        raise _wrong(line, "at least one port is needed")
    for word in words:
        match = _PORT.match(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        protocol = (match[3] if match else None) or "tcp"
        if not first <= last <= _MAX_PORT or protocol.lower() not in _PROTOCOLS:
            raise _wrong(line, f"{word} is no PORT[-PORT][/tcp|/udp|/sctp]")
        ports = config.setdefault("ExposedPorts", {})
        ports.update({f"{port}/{protocol.lower()}": {} for port in range(first, last + 1)})


def _user(config: Config, text: str, line: str) -> None:
    config["User"] = _one(config, text, line)


def _volume(config: Config, text: str, line: str) -> None:
    found = _array(text, line)
    volumes = [_plain(config, word, line) for word in (_words(text) if found is None else found)]
    if not volumes or not all(word.strip() for word in volumes):
        raise _wrong(line, "at least one path is needed, and none that is empty")
    config.setdefault("Volumes", {}).update({word.strip(): {} for word in volumes})


def _workdir(config: Config, text: str, line: str) -> None:
    path = _one(config, text, line)
    if not path:
        raise _wrong(line, "the path is empty")
    below = posixpath.join("/", config.get("WorkingDir") or "/", path)
    config["WorkingDir"] = path if path.startswith("/") else posixpath.normpath(below)


def _onbuild(config: Config, text: str, line: str) -> None:
    word = _SPACE.split(text, maxsplit=1)[0].upper()
    if word in ("", "ONBUILD", "FROM", "MAINTAINER"):
        raise _wrong(line, f"{word or 'nothing'} cannot be a trigger")
    config.setdefault("OnBuild", []).append(text)


def _stop_signal(config: Config, text: str, line: str) -> None:
    config["StopSignal"] = _one(config, text, line)


_CHANGES: Final[Mapping[str, Callable[[Config, str, str], None]]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "ONBUILD": _onbuild,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
