"""Open the layers for a check, and put the checks together."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from fuseoverlay.fsck import doubt, mixed
from fuseoverlay.fsck.origins import Origins
from fuseoverlay.fsck.problems import Finding, Problem, settle
from fuseoverlay.fsck.upper import UpperCheck
from fuseoverlay.fsck.work import WorkCheck
from fuseoverlay.layers import ownmount
from fuseoverlay.layers.objects import stat_key
from fuseoverlay.layers.stack import LayerStack
from fuseoverlay.overlay import claim, owners
from fuseoverlay.overlay.config import MountConfig
from fuseoverlay.system.clones import Clones

_IN_DOUBT: Final = "the lower directories may not be the right ones, or the options"


class Check:
    """One check. The layers stay open and locked while the context `opened` lasts."""

    def __init__(
        self, config: MountConfig, stack: LayerStack, work_fd: int | None, origins: Origins
    ) -> None:
        self._config = config
        self._stack = stack
        self._origins = origins
        self._work = None
        self._work_fd = work_fd
        #: What is not checked, and why.
        self.skipped: list[str] = []
        #: Why repairs that are safe only with the right lowers were not made.
        self.doubt: str | None = None
        if work_fd is not None and config.workdir is not None:
            self._work = WorkCheck(work_fd, config.workdir, origins)
        else:
            self.skipped.append("the work directory (without workdir=)")
        if origins.unknown is not None:
            self.skipped.append(f"whether the lower files of copies exist ({origins.unknown})")

    def findings(self, *, repair: bool, force: bool = False) -> Iterator[Finding]:
        """What is wrong; with `repair`, each after its repair if that is safe. Nothing else writes.

        `force`: make also the repairs that are safe only with the right lowers, even if these may
        be the wrong ones.
        """
        if repair and not force:
            self.doubt = doubt.about(self._stack, self._origins, self._work_fd)
        return settle(self._problems(), repair=repair, doubt=self.doubt and _IN_DOUBT)

    def _problems(self) -> Iterator[Problem]:
        indexed = self._work.indexed() if self._work is not None else None
        upper = UpperCheck(self._stack, self._origins, indexed=indexed)
        yield from upper.problems()
        yield from mixed.problems(
            upper.objects,
            upper.hiding,
            preferred=self._config.whiteout,
            userxattr=self._config.userxattr,
        )
        if self._work is not None:
            yield from self._work.problems(upper)


@contextlib.contextmanager
def opened(config: MountConfig) -> Iterator[Check]:
    """Open the layers of `config`, which has an upper, and lock the upper against mounts.

    Raises `UpperError` if the upper or the work directory is in use, and what a mount would raise.
    """
    with contextlib.ExitStack() as undo:
        clones = undo.enter_context(Clones())
        stack = undo.enter_context(
            LayerStack(
                config.upperdir,
                config.lowerdirs,
                config.data_only,
                user_attributes=config.user_attributes,
            )
        )
        if stack.upper is None:
            raise ValueError("there is no upper to check")
        stack.follow_redirects = config.redirect_dir != "nofollow"
        for layer in stack.below:
            ownmount.enter(layer, clones, submounts=config.submounts)
        roots = owners.roots_of(stack, None)
        work_fd = None
        if config.workdir is None:
            claim.lock_upper(stack.upper)
        else:
            work_fd = claim.claim(config.workdir, stack.upper, clones)
            undo.callback(os.close, work_fd)
            roots[stat_key(os.fstat(work_fd))] = config.workdir
        owners.refuse_overlaps(stack, roots)
        yield Check(config, stack, work_fd, Origins(stack.lowers))
