"""The picture of a run: our seconds divided by those of each peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers import OURS


def draw(report: dict[str, Any], path: Path) -> None:
    """Write a PNG: one row per measure, one mark per peer, left of 1 where we are faster."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    measures = [name for name, row in report["measures"].items() if _is_time(row)]
    peers = [name for name in report["about"]["contenders"] if name != OURS]
    figure, axes = plt.subplots(figsize=(9, 1.5 + 0.24 * len(measures)), layout="constrained")
    for peer, marker in zip(peers, "osD^vPX*<>" * 3, strict=False):
        points = [
            (row[peer]["ours_to_this"], at)
            for at, row in enumerate(report["measures"][name] for name in measures)
            if peer in row and row[peer]["ours_to_this"] is not None
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), label=peer, marker=marker, s=28, alpha=0.8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(measures)), measures, fontsize=8)
    axes.set_ylim(len(measures) - 0.5, -0.5)
    axes.grid(alpha=0.3)
    axes.set_xlabel("seconds of fuseoverlay / seconds of the peer (left: fuseoverlay is faster)")
    figure.legend(loc="outside upper center", ncols=len(peers), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _is_time(row: dict[str, Any]) -> bool:
    return all(one["unit"] == "s" for one in row.values())
