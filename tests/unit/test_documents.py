"""The documents and the manual pages describe everything that the program accepts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fuseoverlay import errors
from fuseoverlay.commands.advice import COMMANDS
from fuseoverlay.overlay import options
from tests.helpers.mounts import BARE_ENV, PROJECT

README = (PROJECT / "README.md").read_text()
OPTIONS_PAGE = (PROJECT / "docs" / "options.md").read_text()
PAGE = PROJECT / "docs" / "fuseoverlay.1"
HELPER_PAGE = PROJECT / "docs" / "mount.fuseoverlay.8"
#: Lines of the manual page that begin an explanation.
HEADS = re.findall(r"^\.TP\n(\..*)$", PAGE.read_text(), re.M)
PAGES = sorted(PROJECT.glob("docs/*.[1-8]"))
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])


OPTIONS = sorted(name for option in options.every() for name in option.names)
CHOICES = {option.names[0]: option for option in options.every() if option.choices}


def _helped(*command: str) -> str:
    """The output of `--help` for a command."""
    argv = [sys.executable, "-m", "fuseoverlay", *command, "--help"]
    env = {**BARE_ENV, "COLUMNS": "80"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout


def test_options_are_found() -> None:
    assert {"lowerdir", "lowerdir+", "timeout", "fsync", "volatile", "noatime"} <= set(OPTIONS)
    assert {"context", "max_write", "noauto", "comment", "remount", "subtype"} <= set(OPTIONS)
    assert not {"on", "follow", "char", "warning", "nonsense"} & set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_option_is_documented(option: str) -> None:
    end = "" if option.endswith("-") else r"(?![\w+])"
    name = rf"(?<![\w+]){re.escape(option)}{end}"
    plain = [_unmarked(line) for line in HEADS]
    assert any(re.search(name, line) for line in plain), "not in the manual page"
    table = OPTIONS_PAGE.partition("## Exit codes")[0]
    assert re.search(rf"^\|[^\n]*`{re.escape(option)}", table, re.M), "not in options.md"


@pytest.mark.parametrize("command", [[], ["mount"]], ids=str)
def test_help_lists_all_options(command: list[str]) -> None:
    rows = _helped(*command).partition("\nmount options")[2].partition("\nexit codes:")[0]
    spelled = {word.strip(",") for word in rows.split()}
    assert {spelling for option in options.every() for spelling in option.spellings} <= spelled


def test_help_lists_all_commands() -> None:
    """Before the mount options. Of the commands, only those with mount options list exit codes."""
    rows = _helped().partition("\ncommands:\n")[2].partition("\nmount options")[0]
    assert set(COMMANDS) == set(re.findall(r"^  ([a-z]+) +[a-z]", rows, re.M))
    assert _helped("images").endswith("\nExit codes: see fuseoverlay(1).\n")


@pytest.mark.parametrize("option", CHOICES)
def test_choices_are_documented(option: str) -> None:
    lines = [_unmarked(line) for line in HEADS]
    (line,) = (line for line in lines if re.search(rf"\b{option}=", line))
    values = re.search(rf"{option}=([^,]*)", line)
    assert values is not None
    assert values[1].split("|") == list(CHOICES[option].choices)


def _unmarked(line: str) -> str:
    """A line of the manual page without its markup."""
    text = re.sub(r"^\.[BIR]+ ", "", re.sub(r"\\f[BIRP]", "", line))
    return text.replace("\\-", "-")


def test_tables_are_not_stale() -> None:
    argv = [sys.executable, str(PROJECT / "scripts" / "tables"), "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("command", ["", "mount", "unmount", "mounts", "fsck"])
def test_flag_is_documented(command: str) -> None:
    """Each flag in `--help` is among the flags of the manual page."""
    told = _helped(*command.split()).partition("\noptions:")[2]
    flags = set(re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", told))
    assert "--help" in flags
    section = PAGE.read_text().partition(".SH FLAGS")[2].partition(".SH ")[0].replace("\\-", "-")
    lines = [line for line in section.splitlines() if line.startswith(".B")]
    missing = {flag for flag in flags if not any(_has(line, flag) for line in lines)}
    assert not missing


def _has(line: str, flag: str) -> bool:
    return re.search(rf"(?<![\w-]){flag}(?![\w-])", line) is not None


def test_exit_codes_are_documented() -> None:
    codes = {0, 1, errors.PROBLEMS_LEFT, errors.INTERRUPTED}
    kinds = [errors.FuseOverlayError]
    while kinds:
        kind = kinds.pop()
        codes.add(kind.exit_code)
        kinds += kind.__subclasses__()
    section = PAGE.read_text().partition('.SH "EXIT STATUS"')[2].partition(".SH ")[0]
    assert {int(code) for code in re.findall(r"^\.B (\d+)$", section, re.M)} == codes
    table = OPTIONS_PAGE.partition("## Exit codes")[2]
    assert {int(code) for code in re.findall(r"^\| (\d+) ", table, re.M)} == codes
    for command in ([], ["mount"]):
        told = _helped(*command).partition("\nexit codes:")[2]
        assert {int(code) for code in re.findall(r"^ +(\d+) ", told, re.M)} == codes
    ours = {errors.mount_exit_code(code) for code in codes}
    section = HELPER_PAGE.read_text().partition('.SH "EXIT STATUS"')[2].partition(".SH ")[0]
    assert {int(code) for code in re.findall(r"^\.B (\d+)$", section, re.M)} == ours


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_manual_page_is_well_formed(page: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("missing tool: groff")
    for device in ("ascii", "utf8"):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-z", f"-T{device}", str(page)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_manual_pages_are_installed() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    installed = project["tool"]["setuptools"]["data-files"]
    expected: dict[str, list[str]] = {}
    for page in PAGES:
        expected.setdefault(f"share/man/man{page.suffix[1:]}", []).append(f"docs/{page.name}")
    pages = {place: names for place, names in installed.items() if place.startswith("share/man/")}
    assert pages == expected
    commands = set(project["project"]["scripts"])
    about = {"fuseoverlay-image", "fuseoverlay-layers"}
    assert {page.stem for page in PAGES} == commands | about, "one page for each command"


def test_installed_as_readme_says_it_is_a_command(tmp_path: Path) -> None:
    """Runs the lines of Install after the installation itself, which needs the network; here they
    find the tests' installation."""
    install = README[README.index("## Install") : README.index("## Mount directories")]
    block = install.split("```")[1]
    assert "pip install ." in block
    (tmp_path / "fuseoverlay-venv").symlink_to(Path(sys.executable).parents[1])
    done = subprocess.run(
        ["sh", "-euc", block.partition("pip install .")[2] + "fuseoverlay --version"],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **BARE_ENV},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fuseoverlay ")


def _links(document: Path) -> list[str]:
    """The targets of its links and pictures inside the project."""
    found = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def _headings(document: Path) -> set[str]:
    """The fragments that lead to its headings."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_lead_to_files(document: Path) -> None:
    for link in _links(document):
        name, _, heading = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.is_file(), link
        assert target.is_relative_to(PROJECT), link
        assert not heading or heading in _headings(target), link


def test_links_are_found() -> None:
    links = {link for document in DOCUMENTS for link in _links(document)}
    assert {"docs/architecture.md", "structure.svg", "../native.md"} <= links


def test_every_decision_is_linked_from_the_architecture() -> None:
    pages = {f"design/{path.name}" for path in PROJECT.glob("docs/design/*.md")}
    assert len(pages) > 10
    assert pages <= set(_links(PROJECT / "docs" / "architecture.md"))


def test_readme_is_short() -> None:
    """Longer texts have pages of their own."""
    assert len(README.splitlines()) <= 150
