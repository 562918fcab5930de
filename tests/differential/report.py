"""Write the tables of docs/semantics.md: `python -m tests.differential.report`, as root."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator

from tests.differential import results
from tests.differential.cases import TOPICS
from tests.differential.cases_open import MISSING
from tests.differential.results import BY_NAME, Key, Results
from tests.helpers.mounts import MODE, PROJECT

DOCUMENT = PROJECT / "docs" / "semantics.md"
PEER = "fuse-overlayfs"
#: What programs on the mount can notice.
TO_PROGRAMS = {"calls", "tree"}
#: The columns about the peer, which only the program fills in.
PEER_COLUMNS = 2
_TABLE = r"(<!-- table: {} -->\n)(.*?)(<!-- end -->)"


def current() -> str:
    """The document as it is."""
    return DOCUMENT.read_text(encoding="utf-8")


def rendered(table: Results, *, keep_peer: bool = False) -> str:
    """The document with the tables that follow from the results; with `keep_peer` the
    numbers about the peer stay."""
    text = current()
    cases = _rows(_cases(table))
    if keep_peer:
        cases = _with_old_peer(_find(text, "cases"), cases)
    for name, body in (
        ("cases", cases),
        ("reasons", _rows(_reasons(table))),
        ("missing", _rows(_missing(table))),
    ):
        pattern = re.compile(_TABLE.format(name), re.DOTALL)
        text = pattern.sub(lambda match, body=body: match[1] + body + match[3], text)
    return text


def _find(text: str, name: str) -> str:
    match = re.search(_TABLE.format(name), text, re.DOTALL)
    return match[2] if match else ""


def _rows(rows: Iterable[list[object]]) -> str:
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * (lines[0].count("|") - 1))
    return "\n".join(lines) + "\n"


def _with_old_peer(old: str, new: str) -> str:
    """The new table with the last columns of the old one, line by line."""
    known = old.splitlines()
    lines = []
    for number, line in enumerate(new.splitlines()):
        cells = line.split("|")
        if number < len(known):
            cells[-PEER_COLUMNS - 1 :] = known[number].split("|")[-PEER_COLUMNS - 1 :]
        lines.append("|".join(cells))
    return "\n".join(lines) + "\n"


def _cases(table: Results) -> Iterator[list[object]]:
    yield [
        *("topic", "features", "cases", "equal", "by design", "not by design"),
        *(f"{PEER}: the same to programs", "all"),
    ]
    groups: dict[tuple[str, str], list[Key]] = {}
    for topic in TOPICS:
        for features in ("off", "on", "other"):
            groups[topic.name, features] = []
    for key in table.differences:
        features = key[0] if key[0] in ("off", "on") else "other"
        groups[BY_NAME[key[1]].topic, features].append(key)
    for (topic, features), keys in groups.items():
        if keys:
            yield [topic, features, *_counts(table, keys)]
    for features in ("off", "on", "other"):
        keys = [key for (_, group), found in groups.items() if group == features for key in found]
        yield ["**all**", features, *_counts(table, keys)]


def _counts(table: Results, keys: list[Key]) -> list[object]:
    wrong = sum(bool(table.unexpected(key)) for key in keys)
    equal = sum(not table.differences[key] for key in keys)
    counts: list[object] = [len(keys), equal, len(keys) - equal - wrong, wrong]
    measured = [table.peer[key] for key in keys if key in table.peer and key[0] == "off"]
    if not measured:
        return [*counts, "", ""]
    to_programs = sum(not found.keys() & TO_PROGRAMS for found in measured)
    return [*counts, to_programs, sum(not found for found in measured)]


def _reasons(table: Results) -> Iterator[list[object]]:
    yield ["reason", "features", "cases"]
    found: dict[str, dict[str, set[str]]] = {}
    for (features, name), differences in table.differences.items():
        for design in BY_NAME[name].design:
            if design.covers(features) and differences.keys() & set(design.aspects):
                by_set = found.setdefault(design.reason, {})
                by_set.setdefault(features, set()).add(name)
    for reason, by_set in sorted(found.items()):
        names = sorted(set.union(*by_set.values()))
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield [reason, ", ".join(by_set), shown]


def _missing(table: Results) -> Iterator[list[object]]:
    yield ["call", "overlayfs", "fuseoverlay"]
    for call, (slug, _, _) in MISSING.items():
        key = ("off", f"open-{slug}")
        if key in table.differences:
            yield [
                f"`{call}`",
                *(_answer(answers[key]) for answers in (table.kernel_answers, table.answers)),
            ]


def _answer(found: list[object]) -> str:
    [answer] = found
    return answer if isinstance(answer, str) else repr(answer)


def main() -> int:
    """Run everything, write the document, print what should not be."""
    if MODE != "root":
        print("must be run as root", file=sys.stderr)
        return 2
    if shutil.which(PEER) is None:
        print(f"missing tool: {PEER}", file=sys.stderr)
        return 2
    table = results.collect(results.everything(), PEER)
    DOCUMENT.write_text(rendered(table), encoding="utf-8")
    wrong = [key for key in table.differences if table.unexpected(key)]
    for key in wrong:
        for what, lines in table.unexpected(key).items():
            print("-".join(key), what, *lines[:3], sep="\n  ")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
