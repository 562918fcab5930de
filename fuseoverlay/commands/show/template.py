"""The part of Go's text/template that `--format` of Docker's commands is used with.

Fields (`.Config.Env`), `$`, strings and numbers, `range`, `if`, `with`, `else`, `end`, pipelines,
parentheses, trim marks, comments, and the functions below. Source: the documentation of Go's
text/template and of Docker's "Format command and log output".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fuseoverlay.errors import UsageError

_ACTION: Final = re.compile(r"\{\{(?P<left>- )?(?P<code>.*?)(?P<right> -)?\}\}", re.DOTALL)
_TOKEN: Final = re.compile(
    r'\s*(?:(?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)|(?P<path>\$?(?:\.\w*)+|\$)'
    r"|(?P<word>\w+)|(?P<sign>[|()]))"
)
_OPENS: Final = ("range", "if", "with")
_MISSING: Final = "<no value>"

_Parts = list["_Text | _Value | _Block"]


class Object(dict[str, Any]):
    """An object that may lack some fields. What they are then is in `absent`; None: whatever it
    lacks has no value, as with Go's maps."""

    def __init__(self, fields: Mapping[str, Any], absent: Mapping[str, Any] | None = None) -> None:
        super().__init__(fields)
        self._absent = absent

    def __missing__(self, name: str) -> Any:
        return None if self._absent is None else self._absent[name]


class Template:
    """A template, parsed once. Raises `UsageError` if it is not valid."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._pieces = list(_pieces(source))
        self._place = 0
        try:
            self._parts, end = self._parse(inside="")
        except (ValueError, RecursionError):
            raise self._error("it is not understood") from None
        if end:
            raise self._error(f"{{{{{end}}}}} without a beginning")

    def fill(self, data: Any) -> str:
        """The text for `data`, which is made of dicts, lists, text, numbers, booleans and None.
        Raises `UsageError` where it has no such field."""
        try:
            return "".join(_filled(self._parts, data, data))
        except RecursionError:
            raise UsageError(f"--format {self._source!r}: nested too deep") from None
        except (LookupError, TypeError, ValueError, OverflowError) as exc:
            what = str(exc.args[0] if exc.args else exc)
            raise UsageError(f"--format {self._source!r}: {what}", hint="correct it") from None

    def _parse(self, inside: str) -> tuple[_Parts, str]:
        """The parts up to `end` or `else`, and which of them it was."""
        parts: _Parts = []
        while self._place < len(self._pieces):
            is_code, text = self._pieces[self._place]
            self._place += 1
            word = text.split(None, 1)[0] if is_code and text else ""
            if not is_code:
                parts.append(_Text(text))
            elif word in _OPENS:
                parts.append(self._block(word, text[len(word) :]))
            elif word in ("end", "else"):
                return parts, text
            elif text and not text.startswith("/*"):
                parts.append(_Value(self._expression(text)))
        if inside:
            raise self._error(f"{{{{{inside}}}}} without {{{{end}}}}")
        return parts, ""

    def _block(self, kind: str, condition: str) -> _Block:
        test = self._expression(condition)
        body, end = self._parse(kind)
        otherwise: _Parts = []
        if end.startswith("else "):
            # `else if` is an `if` inside `else` that shares its end.
            word, _, rest = end.removeprefix("else ").strip().partition(" ")
            return _Block(kind, test, body, [self._block(word, rest)])
        if end == "else":
            otherwise, end = self._parse(kind)
        return _Block(kind, test, body, otherwise)

    def _expression(self, text: str) -> _Expression:
        tokens = []
        place, text = 0, text.strip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise self._error(f"{text[place:]!r} is not understood")
            tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            place = match.end()
        found, rest = self._pipeline(tokens)
        if rest:
            raise self._error(f"{text!r} has a parenthesis too many")
        return found

    def _pipeline(self, tokens: list[tuple[str, str]]) -> tuple[_Expression, list[tuple[str, str]]]:
        commands: list[list[_Operand]] = [[]]
        while tokens:
            (kind, text), *tokens = tokens
            if text == ")" and kind == "sign":
                return _Expression(self._checked(commands)), [(kind, text), *tokens]
            if text == "|" and kind == "sign":
                commands.append([])
            elif text == "(" and kind == "sign":
                inner, tokens = self._pipeline(tokens)
                if not tokens:
                    raise self._error("a parenthesis is not closed")
                tokens = tokens[1:]
                commands[-1].append(inner)
            else:
                commands[-1].append(self._operand(kind, text, first=not commands[-1]))
        return _Expression(self._checked(commands)), []

    def _operand(self, kind: str, text: str, *, first: bool) -> _Operand:
        if kind == "text":
            return _Constant(text[1:-1] if text[0] == "`" else json.loads(text))
        if kind == "number":
            return _Constant(int(text))
        if kind == "path":
            names = tuple(name for name in text.lstrip("$").split(".") if name)
            return _Path(names, from_root=text.startswith("$"))
        if text in ("true", "false", "nil"):
            return _Constant({"true": True, "false": False, "nil": None}[text])
        if not first or text not in _FUNCTIONS:
            known = ", ".join(sorted(_FUNCTIONS))
            raise self._error(f"there is no function {text}; there are {known}")
        return _Function(text)

    def _checked(self, commands: list[list[_Operand]]) -> list[list[_Operand]]:
        if not all(commands):
            raise self._error("a command is missing")
        return commands

    def _error(self, what: str) -> UsageError:
        return UsageError(f"--format {self._source!r}: {what}", hint="write it like '{{.ID}}'")


@dataclass(frozen=True, slots=True)
class _Text:
    text: str


@dataclass(frozen=True, slots=True)
class _Value:
    expression: _Expression


@dataclass(frozen=True, slots=True)
class _Block:
    kind: str
    test: _Expression
    body: _Parts
    otherwise: _Parts


@dataclass(frozen=True, slots=True)
class _Constant:
    value: Any

    def of(self, _data: Any, _root: Any) -> Any:
        return self.value


@dataclass(frozen=True, slots=True)
class _Path:
    names: tuple[str, ...]
    from_root: bool

    def of(self, data: Any, root: Any) -> Any:
        found = root if self.from_root else data
        for name in self.names:
            if found is None:
                return None
            if not isinstance(found, dict):
                raise TypeError(f"there is no field {name} in {_written(found)!r}")
            try:
                found = found[name]
            except KeyError:
                known = ", ".join(map(str, found))
                raise LookupError(f"there is no field {name}; there are {known}") from None
        return found


@dataclass(frozen=True, slots=True)
class _Function:
    name: str

    def of(self, _data: Any, _root: Any) -> Any:
        return self.call()

    def call(self, *given: Any) -> Any:
        try:
            return _FUNCTIONS[self.name](*given)
        except (TypeError, AttributeError, IndexError, KeyError):
            raise ValueError(f"{self.name} cannot take {_written(list(given))}") from None


@dataclass(frozen=True, slots=True)
class _Expression:
    """Commands; the value of one is the last argument of the next."""

    commands: list[list[_Operand]]

    def of(self, data: Any, root: Any) -> Any:
        more: list[Any] = []
        for first, *rest in self.commands:
            given = [operand.of(data, root) for operand in rest] + more
            if isinstance(first, _Function):
                more = [first.call(*given)]
            elif given:
                raise ValueError("only a function takes arguments")
            else:
                more = [first.of(data, root)]
        return more[0]


_Operand = _Constant | _Path | _Function | _Expression


def _pieces(source: str) -> Iterator[tuple[bool, str]]:
    """Text and code in turn, with a mark which it is. Trim marks have taken their spaces."""
    place, trim = 0, False
    for match in _ACTION.finditer(source):
        text = source[place : match.start()]
        text = text.lstrip() if trim else text
        yield False, text.rstrip() if match["left"] else text
        yield True, match["code"].strip()
        place, trim = match.end(), bool(match["right"])
    rest = source[place:]
    if "{{" in rest:
        raise UsageError(f"--format {source!r}: {{{{ without }}}}", hint="write it like '{{.ID}}'")
    yield False, rest.lstrip() if trim else rest


def _filled(parts: _Parts, data: Any, root: Any) -> Iterator[str]:
    for part in parts:
        match part:
            case _Text():
                yield part.text
            case _Value():
                yield _written(part.expression.of(data, root))
            case _Block():
                yield from _filled_block(part, data, root)


def _filled_block(block: _Block, data: Any, root: Any) -> Iterator[str]:
    found = block.test.of(data, root)
    if not found:
        yield from _filled(block.otherwise, data, root)
    elif block.kind == "range":
        # Go takes the values of a map in the order of its keys.
        items = [found[key] for key in sorted(found)] if isinstance(found, dict) else found
        for item in items:
            yield from _filled(block.body, item, root)
    else:
        yield from _filled(block.body, found if block.kind == "with" else data, root)


def _written(value: Any) -> str:
    """A value as Go prints it."""
    match value:
        case None:
            return _MISSING
        case bool():
            return "true" if value else "false"
        case dict():
            inside = (f"{key}:{_inner(value[key])}" for key in sorted(value))
            return f"map[{' '.join(inside)}]"
        case list() | tuple():
            return f"[{' '.join(map(_inner, value))}]"
        case _:
            return str(value)


def _inner(value: Any) -> str:
    """A value inside another one. An empty object there is a struct of Docker's, such as that of an
    exposed port."""
    if value is None:
        return "<nil>"
    return "{}" if value == {} else _written(value)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else value[key]
    return value


def _printf(form: str, *values: Any) -> str:
    # Go's %v and %q are not Python's; the others are.
    if re.search(r"\*|\d{4}", form):
        raise ValueError("printf has a width without bounds")
    form = re.sub(r"%(-?\d*)[vq]", r"%\1s", form)
    return form % tuple(value if isinstance(value, int) else _written(value) for value in values)


def _truncate(text: str, length: int) -> str:
    return text[:length]


def _joined(values: Sequence[Any], by: str) -> str:
    return by.join(map(_written, values))


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "json": _json,
    "join": _joined,
    "split": lambda text, by: text.split(by),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "title": lambda text: text.title(),
    "truncate": _truncate,
    "len": len,
    "index": _index,
    "print": lambda *values: "".join(map(_written, values)),
    "println": lambda *values: " ".join(map(_written, values)) + "\n",
    "printf": _printf,
    "eq": lambda first, *others: any(first == other for other in others),
    "ne": lambda first, other: first != other,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "or": lambda *values: next((value for value in values if value), values[-1]),
}
