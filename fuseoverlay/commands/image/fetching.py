"""Getting an image from a registry: options, progress, what is said at the end and after Ctrl-C."""

from __future__ import annotations

import argparse
import functools
import logging
from typing import Any

import trio

from fuseoverlay.commands import output
from fuseoverlay.commands.image import arrivals, common
from fuseoverlay.errors import RegistryError
from fuseoverlay.oci.model import Platform
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


def settings_of(args: argparse.Namespace) -> Settings:
    """What the options say."""
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
) -> Pulled:
    """Pull what `text` may mean, the first that there is. Raises what `pull` raises."""
    chosen = settings or Settings(warn=output.warn)
    silence_requests()
    read = configuration.read(chosen.environment, chosen.warn)
    *others, last = shortnames.candidates(text, read)
    with arrivals.shown(arrivals.coming, quiet=quiet) as progress:
        for reference in (*others, last):
            work: functools.partial[Any] = functools.partial(
                pull, store, reference, platform=platform, all_platforms=all_platforms,
                unpack=unpack, settings=chosen, progress=progress, warn=output.warn,
            )  # fmt: skip
            try:
                pulled: Pulled = trio.run(work)
            except RegistryError as exc:
                if reference == last or exc.status not in _ABSENT:
                    raise
            else:
                return pulled
    raise AssertionError("there is always a last one")
