"""Getting an image from a registry: options, progress, what is said at the end and after Ctrl-C."""

from __future__ import annotations

import argparse
import functools
import logging
import os
from collections.abc import Sequence
from typing import Any

import trio

from fuseoverlay.commands import output
from fuseoverlay.commands.image import arrivals, common
from fuseoverlay.errors import RegistryError, UsageError
from fuseoverlay.oci.model import Platform
from fuseoverlay.oci.reference import Reference
from fuseoverlay.registry import configuration, shortnames
from fuseoverlay.registry.settings import Settings
from fuseoverlay.store.pull import Pulled, pull
from fuseoverlay.store.root import Store

#: What a registry says of a name that it does not have, or not for us.
_ABSENT = (401, 403, 404)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that asks registries."""
    common.add_switch(parser, "--tls-verify", default=None,
                      help="only HTTPS with a trusted certificate; --tls-verify=false: also plain "
                      "HTTP, and any certificate")  # fmt: skip
    parser.add_argument("--authfile", metavar="FILE", help="where the credentials are")
    parser.add_argument("--cert-dir", metavar="DIR", help="where certificates are")


def settings_of(args: argparse.Namespace, *, makes: bool = False) -> Settings:
    """What the options say. `makes`: the authfile need not be there yet. Raises `UsageError`."""
    if args.authfile is not None and not makes and not os.path.exists(args.authfile):
        hint = "correct --authfile, or leave it out"
        raise UsageError("there is no such file", where=args.authfile, hint=hint)
    return Settings(
        tls_verify=args.tls_verify,
        auth_file=args.authfile,
        certificates=args.cert_dir,
        warn=output.warn,
    )


def silence_requests() -> None:
    """Every request is nothing that was asked for."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def fetch(
    store: Store,
    text: str,
    *,
    platform: Platform | None = None,
    all_platforms: bool = False,
    unpack: bool = True,
    settings: Settings | None = None,
    quiet: bool = False,
    only_new: bool = False,
) -> Pulled:
    """Pull what `text` may mean, the first that there is. With `only_new`, nothing is shown if all
    of it is there. Raises what `pull` raises."""
    chosen = settings or Settings(warn=output.warn)
    silence_requests()
    read = configuration.read(chosen.environment, chosen.warn)
    *others, last = shortnames.candidates(text, read)
    failed: list[RegistryError] = []
    for reference in (*others, last):
        shown = arrivals.shown(
            arrivals.coming, quiet=quiet, heading=_heading(reference), only_new=only_new,
            unpack=unpack and not all_platforms,
        )  # fmt: skip
        try:
            with shown as progress:
                work: functools.partial[Any] = functools.partial(
                    pull, store, reference, platform=platform, all_platforms=all_platforms,
                    unpack=unpack, settings=chosen, progress=progress, warn=output.warn,
                )  # fmt: skip
                pulled: Pulled = trio.run(work)
        except RegistryError as exc:
            failed.append(exc)
            if reference == last or exc.status not in _ABSENT:
                raise _joined(failed) from None
        else:
            return pulled
    raise AssertionError("there is always a last one")


def _heading(reference: Reference) -> str:
    """Docker's first line."""
    what = reference.tag if reference.digest is None else reference
    return f"{what}: Pulling from {reference.repository}"


def _joined(failed: Sequence[RegistryError]) -> RegistryError:
    """What all the registries said that were asked."""
    *others, last = failed
    if not others:
        return last
    what = "; ".join(f"{exc.where}: {exc.what}" for exc in failed)
    return RegistryError(what, hint=last.hint, status=last.status)
