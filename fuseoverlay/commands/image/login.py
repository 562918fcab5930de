"""`fuseoverlay login` and `logout`: the account for a registry."""

from __future__ import annotations

import functools
import getpass
import sys

import trio

from fuseoverlay.commands import output
from fuseoverlay.commands.image import common, fetching
from fuseoverlay.commands.parser import Parser
from fuseoverlay.errors import UsageError
from fuseoverlay.oci.reference import HUB
from fuseoverlay.registry import login as registry
from fuseoverlay.registry.accounts import Account


def command(argv: list[str], prog: str) -> int:
    """Log in, or out, which the last word of `prog` says; returns the exit code."""
    return _logout(argv, prog) if prog.endswith("logout") else _login(argv, prog)


def _login(argv: list[str], prog: str) -> int:
    parser = _parser(
        prog, "Try an account at a registry, and keep it where podman does.",
        f"{prog} quay.io", f"echo $TOKEN | {prog} -u me --password-stdin ghcr.io",
    )  # fmt: skip
    parser.add_argument("-u", "--username", metavar="NAME", help="otherwise it is asked for")
    parser.add_argument("-p", "--password", metavar="PASSWORD",
                        help="others can see it; better --password-stdin")  # fmt: skip
    parser.add_argument("--password-stdin", action="store_true", help="read it from there")
    fetching.add_options(parser)
    args = parser.parse_args(argv)
    if args.password_stdin and (args.password is not None or args.username is None):
        raise UsageError(
            "--password-stdin goes with -u and without -p", hint="write -u NAME --password-stdin"
        )
    account = Account(args.username or _asked(), _password(args.password, args.password_stdin))
    work = functools.partial(registry.login, args.server, account, fetching.settings_of(args))
    output.note(f"the account is kept in {trio.run(work)}")
    output.say("Login Succeeded")
    return 0


def _logout(argv: list[str], prog: str) -> int:
    parser = _parser(prog, "Forget the account for a registry.", f"{prog} quay.io")
    fetching.add_options(parser)
    args = parser.parse_args(argv)
    for place in trio.run(
        functools.partial(registry.logout, args.server, fetching.settings_of(args))
    ):
        output.note(f"removed from {place}")
    output.say(f"Removed login credentials for {args.server}")
    return 0


def _parser(prog: str, description: str, *examples: str) -> Parser:
    parser = common.parser(prog, description, *examples)
    parser.add_argument("server", nargs="?", default=HUB, metavar="SERVER",
                        help="HOST[:PORT][/NAMESPACE] (default docker.io)")  # fmt: skip
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
