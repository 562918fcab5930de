"""`fuseoverlay login`: an account for a registry is tried and kept."""

from __future__ import annotations

import functools
import getpass
import sys
from typing import Final

import trio

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common, fetching
from fuseoverlay.commands.parser import Parser
from fuseoverlay.errors import UsageError
from fuseoverlay.oci.reference import HUB
from fuseoverlay.registry import login as registry
from fuseoverlay.registry.accounts import Account

#: Docker's warning.
_INSECURE: Final = "WARNING! Using --password via the CLI is insecure. Use --password-stdin."


def command(argv: list[str], prog: str) -> int:
    """Log in; returns the exit code."""
    args = parser(prog).parse_args(argv)
    if args.password_stdin and (args.password is not None or args.username is None):
        raise UsageError(
            "--password-stdin goes with -u and without -p", hint="write -u NAME --password-stdin"
        )
    if args.password is not None:
        output.note(_INSECURE)
    settings = fetching.settings_of(args, makes=True)
    account = Account(args.username or _asked(), _password(args.password, args.password_stdin))
    work = functools.partial(registry.login, args.server, account, settings)
    output.note(f"the credentials are stored in {trio.run(work)}")
    output.say("Login Succeeded")
    return 0


def parser(prog: str) -> Parser:
    """The parser of its arguments."""
    made = parser_of(
        prog, "Log in to a registry. The credentials are tried, and stored where podman does.",
        f"{prog} quay.io", f"echo $TOKEN | {prog} -u me --password-stdin ghcr.io",
    )  # fmt: skip
    made.add_argument("-u", "--username", metavar="NAME", help="prompted for if omitted")
    made.add_argument("-p", "--password", metavar="PASSWORD",
                        help="others can see it; better --password-stdin")  # fmt: skip
    made.add_argument("--password-stdin", action="store_true",
                      help="read the password from standard input")  # fmt: skip
    return made


def parser_of(prog: str, description: str, *examples: str) -> Parser:
    """A parser for the account of a registry."""
    parser = common.parser(prog, description, *examples)
    parser.add_argument("server", nargs="?", default=HUB, metavar="SERVER",
                        help="HOST[:PORT][/NAMESPACE] (default docker.io)")  # fmt: skip
    fetching.add_options(parser)
    return parser


def _asked() -> str:
    if not sys.stdin.isatty():
        raise UsageError("no user name is given", hint="write -u NAME --password-stdin")
    print("Username: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def _password(given: str | None, from_stdin: bool) -> str:
    if given is not None:
        return given
    if from_stdin:
        return sys.stdin.read().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise UsageError("no password is given", hint="write --password-stdin and pipe it in")
    return getpass.getpass("Password: ")
