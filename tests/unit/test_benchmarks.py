"""The benchmarks' layers and their reading of the kernel's ring buffer."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import __main__ as command_line
from benchmarks import images, largeimage, layers, processes, report
from benchmarks.requests import opcodes
from benchmarks.runner import Outcome
from benchmarks.session import Samples
from benchmarks.trees import QUICK, Layers
from fuseoverlay.oci.blobs import open_image
from fuseoverlay.oci.layout import LayoutWriter, Node, directory, layer_tar
from tests.helpers.mounts import scratch
from tests.helpers.tree import record

#: A small one of the large images.
_SMALL = largeimage.Shape(5, 1000, mean=50)


def _merge(lowers: tuple[Path, ...], target: Path) -> None:
    """What an overlay shows of these layers, for files, links and whiteouts."""
    for lower in reversed(lowers):
        for parent, directories, files in os.walk(lower):
            here = target / os.path.relpath(parent, lower)
            here.mkdir(exist_ok=True)
            links = [name for name in directories if os.path.islink(f"{parent}/{name}")]
            for name in files + links:
                if stat.S_ISCHR(os.lstat(f"{parent}/{name}").st_mode):
                    (here / name).unlink()
                else:
                    shutil.copy2(f"{parent}/{name}", here / name, follow_symlinks=False)


def test_forty_layers_show_the_same_tree_as_one() -> None:
    """So contenders on one layer, on forty and on a plain directory do the same work."""
    with scratch() as base:
        layers = Layers(base, QUICK)
        forty = layers.stack("tree40")
        merged = base / "merged"
        _merge(forty.lowers, merged)
        shown, flat = record(str(merged)), record(str(forty.flat))
        assert shown.keys() == flat.keys()
        assert sum(entry.kind == "file" for entry in flat.values()) == QUICK.files
        for name, entry in flat.items():
            assert shown[name].kind == entry.kind
            assert (shown[name].digest, shown[name].target) == (entry.digest, entry.target), name
        assert len(forty.lowers) == 40
        assert all(os.listdir(lower) for lower in forty.lowers)


def _page(*events: bytes, missed: int = 0) -> bytes:
    data = b"".join(events)
    return struct.pack("=QQ", 0, len(data) | missed) + data


def _event(opcode: int, *, long: bool = False) -> bytes:
    """A fuse_request_send event of 32 bytes, with its length in the header or after it."""
    data = struct.pack("=QI4xQII", 0, 45, 7, opcode, 56)
    return struct.pack("=II", 5 << 5, 36) + data if long else struct.pack("=I", 8 | 5 << 5) + data


def test_events_of_a_ring_buffer_page() -> None:
    """Time stamps are skipped, and so are events that the filter discarded."""
    time = struct.pack("=II", 30, 0)
    discarded = struct.pack("=II", 29 | 1 << 5, 32) + bytes(28)
    rest = struct.pack("=I", 29) + bytes(60)
    page = _page(time, _event(1), discarded, _event(44, long=True), time, _event(15), rest)
    assert list(opcodes(page)) == [1, 44, 15]


def test_lost_events_are_no_count() -> None:
    """If the reader was too slow the kernel says so, and there is no count."""
    with pytest.raises(OverflowError):
        list(opcodes(_page(_event(1), missed=1 << 31)))


def test_a_start_may_take_so_many_seconds_more() -> None:
    """The medians are compared. Whole commands have no CPU seconds and no requests, and so no
    tables of them."""
    outcome = Outcome()
    outcome.results["containers/start"] = {
        "fuseoverlay": Samples([0.5, 0.25, 9.0]),
        "fuse-overlayfs": Samples([0.25, 0.125, 0.125]),
    }
    told = report.as_json(outcome, QUICK, {"contenders": ["fuseoverlay", "fuse-overlayfs"]})
    reached = {one["measure"]: (one["reached"], one["hit"]) for one in told["targets"]}
    assert reached["containers/start"] == (0.375, False)
    assert reached["containers/build"] == (None, None)
    text = report.as_text(told)
    assert "+0.38 s | MISS" in text and "4.00 (0.125)" in text
    assert "CPU" not in text and "FUSE requests" not in text


def test_a_tree_in_many_layers(tmp_path: Path) -> None:
    """All of it but hard links, in layers that are about equally large."""
    plain = tmp_path / "plain.tar"
    nodes = [Node(f"file-{number}", data=bytes([number]) * 2000) for number in range(60)]
    plain.write_bytes(layer_tar([directory("etc"), *nodes, Node("second", hardlink="file-1")]))
    for count in (1, 12, 60):
        layers = list(images.divided(plain, count))
        found: dict[str, bytes] = {}
        for layer in layers:
            with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
                files = [member for member in tar if member.isreg()]
                assert 0 < len(files) <= 60 // count + 2, count
                found |= {member.name: _content(tar, member) for member in files}
        assert len(layers) == count
        assert found == {node.name: node.data for node in nodes}


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def test_images_are_compared_with_each_tool() -> None:
    outcome = Outcome()
    outcome.results["images/load-12"] = {
        "fuseoverlay": Samples([2.0]), "umoci": Samples([4.0]), "podman": Samples([2.5]),
    }  # fmt: skip
    outcome.results["images/memory"] = {"fuseoverlay": Samples([121.0], unit="MiB")}
    contenders = ["fuseoverlay", "umoci", "podman"]
    told = report.as_json(outcome, QUICK, {"contenders": contenders})
    reached = {one["target"]: one["reached"] for one in told["targets"]}
    assert reached["images: load of 12 layers, umoci"] == 0.5
    assert reached["images: load of 12 layers, podman"] == 0.8
    text = report.as_text(told)
    assert "121 MiB | MISS" in text and "0.50 (4.000)" in text and "0.80 (2.500)" in text
    assert "FUSE requests" not in text


@pytest.mark.parametrize("run", ["--images", "--layers"])
@pytest.mark.parametrize("words", [["--mode", "user"], ["--containers"], ["--workload", "stat"]])
def test_some_are_a_run_of_their_own(run: str, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.parse([run, *words])


def test_images_and_layers_do_not_go_together() -> None:
    with pytest.raises(SystemExit):
        command_line.parse(["--images", "--layers"])


def test_the_large_image_is_always_the_same(tmp_path: Path) -> None:
    """And the other one differs in the top layer."""
    digests = []
    for name in "ab":
        largeimage.write(tmp_path / name, _SMALL)
        with open_image(str(tmp_path / name)) as source:
            found = [source.resolve(ref).layers for ref in (largeimage.REF, largeimage.OTHER)]
        digests.append([[layer.digest for layer in image] for image in found])
    (one, other), again = digests
    assert [one, other] == again
    assert one[:-1] == other[:-1] and one[-1] != other[-1]
    assert len(set(one)) == _SMALL.layers


def test_the_layers_of_the_large_image() -> None:
    nodes = [list(largeimage.layer(_SMALL, number)) for number in range(_SMALL.layers + 1)]
    assert [len(found) for found in nodes] == [_SMALL.entries // _SMALL.layers] * len(nodes)
    names = [[str(node.name) for node in found] for found in nodes]
    for number, found in enumerate(names):
        assert len(found) == len(set(found))
        only = f"usr/share/{largeimage.only_in(number)}"
        assert [only in others for others in names].count(True) == 1
        first = f"usr/lib/{largeimage.package(number)}/part000/file3.py"
        assert [first in others for others in names[:-1]].count(True) == (number < _SMALL.layers)
        assert sum("/.wh." in name for name in found) > 1


def test_looking_into_layers_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step once, with a small image."""
    monkeypatch.setattr(layers, "_TIMES", 1)
    outcome = Outcome()
    layers.run(tmp_path, _SMALL, list(layers.TOOLS_COMPARED), 1, limit=60, outcome=outcome)
    assert outcome.failures == []
    measured = {name.removeprefix("layers/"): row for name, row in outcome.results.items()}
    assert measured.keys() == layers.STEPS.keys()
    assert {name for name, row in measured.items() if "tar" in row} == {"index"}
    assert all(len(samples.values) == 1 for row in measured.values() for samples in row.values())


def test_a_step_that_fails_is_told_once(tmp_path: Path) -> None:
    outcome = Outcome()
    (tmp_path / "layout").mkdir()
    LayoutWriter(tmp_path / "layout").add_image([], ref=largeimage.REF)
    bench = layers._Bench(tmp_path, _SMALL, 60, outcome)
    for _ in range(2):
        bench._take("which", "fuseoverlay", lambda: bench._timed(layers.QUICK_STEPS["which"]))
    ((step, tool, why),) = outcome.failures
    assert (step, tool) == ("layers/which", "fuseoverlay")
    assert "no layer has /usr/lib/pkg02/part000/file3.py" in why


def test_memory_of_all_processes_is_added() -> None:
    """Two processes have 60 MiB each at the same time."""
    program = "import os, time; os.fork(); data = b'x' * (60 << 20); time.sleep(1)"
    found = processes.peak([sys.executable, "-c", program], limit=60)
    assert 120 < found < 180
    with pytest.raises(processes.Failure, match="exit code 3"):
        processes.peak([sys.executable, "-c", "raise SystemExit(3)"], limit=60)


def test_layers_have_targets() -> None:
    outcome = Outcome()
    outcome.results["layers/index"] = {"fuseoverlay": Samples([5.0]), "tar": Samples([4.0])}
    outcome.results["layers/which"] = {"fuseoverlay": Samples([0.125])}
    told = report.as_json(outcome, QUICK, {"contenders": ["fuseoverlay", "tar"]})
    reached = {one["measure"]: (one["reached"], one["hit"]) for one in told["targets"]}
    assert reached["layers/index"] == (1.25, False)
    assert reached["layers/which"] == (0.125, True)
    assert "FUSE requests" not in report.as_text(told)
