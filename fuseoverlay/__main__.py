"""`python -m fuseoverlay`, and the commands `fuseoverlay` and `mount.fuseoverlay`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from fuseoverlay.commands import dispatch
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(dispatch.main(sys.argv[1:]))


def mount_helper() -> None:
    """The same for `mount.fuseoverlay`."""
    from fuseoverlay.commands import dispatch

    sys.exit(dispatch.main_of_helper(sys.argv[1:]))


if __name__ == "__main__":
    main()
