"""What a person sees of the images in the store."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fuseoverlay.errors import ImageError
from fuseoverlay.oci import model
from fuseoverlay.oci.model import Descriptor, Digest
from fuseoverlay.store.images import Images, Step, parse_time
from fuseoverlay.store.root import Store
from tests.store.pictures import HOST, OTHER, Painter

DEBIAN = "docker.io/library/debian:12"
PROJECT = Path(__file__).resolve().parents[2]


def test_an_image(paint: Painter, images: Images) -> None:
    manifest = paint.name(
        paint.manifest(
            "a", "b", created="2024-02-03T04:05:06.123456789Z", config={"Labels": {"k": "v"}}
        ),
        DEBIAN,
    )
    (image,) = images.all()
    config = model.Manifest.parse(model.decode_json(images.content.read(manifest), "")).config
    assert image.id == config.digest
    assert image.names == (DEBIAN,)
    assert not image.dangling
    assert image.repo_digests == (f"docker.io/library/debian@{manifest.digest}",)
    assert image.digests == (manifest.digest,)
    assert image.platform == HOST
    assert image.labels == {"k": "v"}
    assert image.created == "2024-02-03T04:05:06.123456789Z"
    assert image.created_at == datetime(2024, 2, 3, 4, 5, 6, 123456, UTC)
    assert image.size == manifest.size + config.size + sum(item.size for item in image.layers)
    assert len(image.layers) == len(image.diff_ids) == 2
    assert image.problem is None


def test_no_images(images: Images) -> None:
    assert images.all() == []


def test_a_transport_before_the_name(paint: Painter, images: Images) -> None:
    paint.name(paint.manifest("a"), "docker.io/library/debian:12")
    (image,) = images.all()
    for text in ("docker://debian:12", "docker:debian:12", f"docker://debian@{image.digests[0]}"):
        assert images.resolve(text).id == image.id
    with pytest.raises(ImageError, match="docker://debian:13: no such image"):
        images.resolve("docker://debian:13")


def test_one_image_of_two_names(paint: Painter, images: Images) -> None:
    manifest = paint.manifest("a")
    paint.name(manifest, DEBIAN)
    paint.name(manifest, "localhost:5000/x:1")
    (image,) = images.all()
    assert image.names == (DEBIAN, "localhost:5000/x:1")
    assert image.repo_digests == (
        f"docker.io/library/debian@{manifest.digest}",
        f"localhost:5000/x@{manifest.digest}",
    )


def test_one_config_of_two_manifests(paint: Painter, images: Images) -> None:
    """They are one image, as in docker."""
    layer = paint.layer("a")
    one = paint.name(paint.manifest(layers=[layer]), DEBIAN)
    two = paint.name(paint.manifest(layers=[layer], annotations={"a": "b"}), "x/y:1")
    (image,) = images.all()
    assert image.digests == (one.digest, two.digest)
    assert len(image.repo_digests) == 2


def test_dangling(paint: Painter, images: Images) -> None:
    manifest = paint.name(paint.manifest("a"))
    (image,) = images.all()
    assert image.dangling
    assert image.names == image.repo_digests == ()
    assert image.digests == (manifest.digest,)


def test_what_was_renamed_knows_its_repository(paint: Painter, images: Images) -> None:
    one = paint.name(paint.manifest("a"), DEBIAN)
    with images.names.editing() as index:
        index.set(DEBIAN, paint.manifest("b"))
    (dangling,) = [image for image in images.all() if image.dangling]
    assert dangling.repo_digests == (f"docker.io/library/debian@{one.digest}",)


def test_several_platforms(paint: Painter, images: Images) -> None:
    other, ours = paint.manifest("s", platform=OTHER), paint.manifest("a")
    index = paint.name(paint.index(other, ours), DEBIAN)
    (image,) = images.all()
    assert image.manifest.digest == ours.digest
    assert image.digests == (index.digest,)
    (image,) = images.all(OTHER)
    assert image.manifest.digest == other.digest
    assert image.platform == OTHER


@pytest.mark.parametrize("there", ["ours", "other"])
def test_platforms_that_are_not_here(paint: Painter, images: Images, there: str) -> None:
    manifests = {"other": paint.manifest("s", platform=OTHER), "ours": paint.manifest("a")}
    paint.name(paint.index(paint.index(manifests["other"]), manifests["ours"]), DEBIAN)
    for name, manifest in manifests.items():
        if name != there:
            images.content.path(manifest.digest).unlink()
    (image,) = images.all()
    assert image.manifest.digest == manifests[there].digest


def test_attestations_are_no_images(paint: Painter, images: Images) -> None:
    about = paint.manifest("x")
    annotated = Descriptor(
        about.media_type,
        about.digest,
        about.size,
        {"vnd.docker.reference.type": "attestation-manifest"},
    )
    ours = paint.manifest("a")
    paint.name(paint.index(annotated, ours), DEBIAN)
    (image,) = images.all()
    assert image.manifest.digest == ours.digest


@pytest.mark.parametrize("damage", ["missing", "cut", "wrong", "artifact"])
def test_what_cannot_be_read_is_listed(paint: Painter, images: Images, damage: str) -> None:
    manifest = paint.manifest("a")
    path = images.content.path(manifest.digest)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "wrong":
        path.write_bytes(path.read_bytes().replace(b"2", b"3", 1))
    else:
        config = paint.writer.add_json("application/vnd.example", {})
        data = {"schemaVersion": 2, "config": config.to_json(), "layers": []}
        manifest = paint.writer.add_json(model.OCI_MANIFEST, data)
    paint.name(manifest, DEBIAN)
    paint.name(paint.manifest("b"), "b")
    image, other = images.all()
    assert image.id == manifest.digest
    assert image.problem
    assert image.names == (DEBIAN,)
    assert other.problem is None
    with pytest.raises(ImageError):
        images.config(image)


HISTORY = [
    {"created": "2024-01-01T00:00:00Z", "created_by": "ADD x", "comment": "c", "author": "me"},
    {"created_by": "ENV y", "empty_layer": True},
    {"created_by": "RUN z"},
]


def test_history(paint: Painter, images: Images) -> None:
    paint.name(paint.manifest("a", "b", "c", history=HISTORY), DEBIAN)
    assert images.history(images.resolve("debian:12")) == [
        Step("2024-01-01T00:00:00Z", "ADD x", "me", "c", 0),
        Step(created_by="ENV y"),
        Step(created_by="RUN z", layer=1),
        Step(layer=2),
    ]


def test_resolving(paint: Painter, images: Images) -> None:
    manifest = paint.manifest("a")
    index = paint.name(paint.index(manifest), DEBIAN)
    paint.name(paint.manifest("b"), "docker.io/library/other:latest")
    image = images.resolve("debian:12")
    texts = [
        *(DEBIAN, "library/debian:12", f"debian@{index.digest}", f"debian@{manifest.digest}"),
        *(str(image.id), image.id.hex, image.id.hex[:12], f"sha256:{image.id.hex[:12]}"),
        *(str(index.digest), manifest.digest.hex[:20]),
    ]
    for text in texts:
        assert images.resolve(text) == image, text
    assert images.resolve("other").names == ("docker.io/library/other:latest",)


@pytest.mark.parametrize(
    "text", ["debian", "debian:13", "f" * 64, "", "Debian", f"x@{Digest.of(b'')}", "sha256:", "/"]
)
def test_what_is_not_there(paint: Painter, images: Images, text: str) -> None:
    paint.name(paint.manifest("a"), DEBIAN)
    with pytest.raises(ImageError, match="no such image"):
        images.resolve(text)


def test_names_of_other_tools(paint: Painter, images: Images) -> None:
    paint.name(paint.manifest("a"), "A Name")
    assert images.resolve("A Name").names == ("A Name",)


def test_what_may_be_two(paint: Painter, images: Images) -> None:
    names = [f"docker.io/library/n{number}:latest" for number in range(40)]
    for name in names:
        paint.name(paint.manifest(name), name)
    found = images.all()
    digit = next(
        digit
        for digit in "0123456789abcdef"
        if sum(image.id.hex.startswith(digit) for image in found) > 1
    )
    with pytest.raises(ImageError, match=r"may be .* and ") as caught:
        images.resolve(digit)
    shown = re.findall(r"([0-9a-f]{12}) \((.*?)\)", str(caught.value))
    assert len(shown) == 2
    assert all(images.resolve(short).names == (name,) for short, name in shown)


def test_a_name_that_is_the_beginning_of_an_id(paint: Painter, images: Images) -> None:
    paint.name(paint.manifest("a"), DEBIAN)
    short = images.resolve("debian:12").id.hex[:12]
    paint.name(paint.manifest("b"), f"docker.io/library/{short}:latest")
    with pytest.raises(ImageError, match=rf"may be .*{short}:latest.* and .*debian:12"):
        images.resolve(short)
    # If both are the same image, there is no doubt.
    images.tag("debian:12", short)
    assert set(images.resolve(short).names) == {DEBIAN, f"docker.io/library/{short}:latest"}


def test_tagging(paint: Painter, images: Images) -> None:
    platforms = [paint.manifest("a"), paint.manifest("s", platform=OTHER)]
    index = paint.name(paint.index(*platforms), DEBIAN)
    assert images.tag("debian:12", "mine") is None
    assert images.resolve("mine").names == (DEBIAN, "docker.io/library/mine:latest")
    assert images.resolve("mine").digests == (index.digest,)
    other = paint.name(paint.manifest("b"), "x/y:1")
    assert images.tag("x/y:1", "mine") == index.digest
    assert images.resolve("mine").digests == (other.digest,)
    images.tag(index.digest.hex[:12], "localhost/again:2")
    assert images.resolve("localhost/again:2").digests == (index.digest,)
    for bad in ("UPPER", f"x@{index.digest}", ""):
        with pytest.raises(ImageError):
            images.tag("debian:12", bad)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2024-01-02T03:04:05Z", datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2024-01-02T05:04:05.5+02:00", datetime(2024, 1, 2, 3, 4, 5, 500000, UTC)),
        ("0001-01-01T00:00:00Z", None),
        ("9999-12-31T23:59:59-23:59", None),
        ("2024-01-02", None),
        ("2024-13-02T03:04:05Z", None),
        ("", None),
    ],
)
def test_times(text: str, found: datetime | None) -> None:
    assert parse_time(text) == found


def test_listing_loads_little(paint: Painter, kept: Store) -> None:
    """`image ls` starts fast, also with many images."""
    for number in range(200):
        name = f"docker.io/library/n{number}:latest"
        history = [{"created_by": f"RUN {step}" * 9, "empty_layer": True} for step in range(15)]
        paint.name(paint.manifest(layers=[], history=history, config={"Cmd": [name]}), name)
    code = (
        "import sys; from fuseoverlay.store.images import Images;"
        "from fuseoverlay.store.root import Store;"
        f"assert len(Images(Store({str(kept.root)!r})).all()) == 200;"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=True
    )
    heavy = {"trio", "rich", "httpx", "httpx2", "pyfuse3", "tempfile", "asyncio", "gzip", "lzma"}
    assert heavy & set(done.stdout.split()) == set()
