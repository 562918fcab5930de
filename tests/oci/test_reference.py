"""Names of images in registries, as docker reads and shows them."""

from __future__ import annotations

import pytest

from fuseoverlay.errors import ImageError
from fuseoverlay.oci.model import Digest
from fuseoverlay.oci.reference import Reference, names_host

HEX = "0123456789abcdef" * 4
SUM = f"sha256:{HEX}"
DIGEST = Digest.parse(SUM)


@pytest.mark.parametrize(
    ("text", "expected", "familiar"),
    [
        ("debian", Reference("docker.io", "library/debian", "latest"), "debian:latest"),
        ("debian:12", Reference("docker.io", "library/debian", "12"), "debian:12"),
        ("library/debian", Reference("docker.io", "library/debian", "latest"), "debian:latest"),
        ("docker.io/debian", Reference("docker.io", "library/debian", "latest"), "debian:latest"),
        ("index.docker.io/a/b", Reference("docker.io", "a/b", "latest"), "a/b:latest"),
        ("a/b/c:x", Reference("docker.io", "a/b/c", "x"), "a/b/c:x"),
        ("localhost/a", Reference("localhost", "a", "latest"), "localhost/a:latest"),
        ("localhost:5000/a", Reference("localhost:5000", "a", "latest"), "localhost:5000/a:latest"),
        ("Host/a:1", Reference("Host", "a", "1"), "Host/a:1"),
        ("localhost:5000", Reference("docker.io", "library/localhost", "5000"), "localhost:5000"),
        ("[::1]:5000/a:1", Reference("[::1]:5000", "a", "1"), "[::1]:5000/a:1"),
        ("quay.io/a__b/c-d.e:V_1", Reference("quay.io", "a__b/c-d.e", "V_1"), None),
        (f"a@{SUM}", Reference("docker.io", "library/a", None, DIGEST), f"a@{SUM}"),
        (f"a:1@{SUM}", Reference("docker.io", "library/a", "1", DIGEST), f"a:1@{SUM}"),
        (f"a@sha512:{HEX}{HEX}", None, f"a@sha512:{HEX}{HEX}"),
        ("ghcr.io/library/a:1", Reference("ghcr.io", "library/a", "1"), "ghcr.io/library/a:1"),
        (f"library/{HEX}:1", Reference("docker.io", f"library/{HEX}", "1"), f"library/{HEX}:1"),
    ],
)
def test_names(text: str, expected: Reference | None, familiar: str | None) -> None:
    found = Reference.parse(text)
    assert expected is None or found == expected
    assert familiar is None or found.familiar() == familiar
    assert Reference.parse(str(found)) == found
    assert Reference.parse(found.familiar()) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "@" + SUM,
        HEX,
        "A",
        "a//b",
        "/a",
        "a/",
        "a:",
        "a@",
        "a@sha256:12",
        f"a@{SUM}@{SUM}",
        "a:-x",
        "a:.x",
        "a:" + "x" * 129,
        "a___b",
        "a..b",
        "a._b",
        "-a",
        "a-",
        "a b",
        "a\n",
        "a:1\n",
        "é",
        "a:é",
        "../a",
        "quay.io/../a",
        "quay.io/a/./b",
        "-x.org/a",
        "x-.org/a",
        "x..org/a",
        "host:/a",
        "host:99999/a",
        "host:12345678/a",
        "user@host/a",
        "https://host/a",
        "host:5000/",
        "a/" * 127 + "aa",
        "a" * 5000,
    ],
)
def test_malformed_names(text: str) -> None:
    with pytest.raises(ImageError) as caught:
        Reference.parse(text)
    assert caught.value.hint
    assert len(str(caught.value)) < 400


def test_capital_letters_are_named() -> None:
    with pytest.raises(ImageError, match=r"User/app: has capital letters; write user/app"):
        Reference.parse("quay.io/User/app")


def test_the_longest_repository() -> None:
    assert Reference.parse("x.y/" + "a" * 255).repository == "a" * 255


def test_a_reference_cannot_be_made_wrong() -> None:
    for parts in (("..", "a", "1"), ("a", "..", "1"), ("a", "a", "../1"), ("a", "a", None)):
        with pytest.raises(ImageError):
            Reference(*parts)


def test_others_of_the_same_repository() -> None:
    found = Reference.parse(f"a:1@{SUM}")
    assert str(found.with_tag("2")) == "docker.io/library/a:2"
    assert str(found.with_digest(DIGEST)) == f"docker.io/library/a@{SUM}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", False), ("a/b", False), ("a.b", False), ("a:1", False), ("a.b/c", True),
     ("a:1/c", True), ("localhost/c", True), ("A/c", True)],
)  # fmt: skip
def test_hosts(text: str, expected: bool) -> None:
    assert names_host(text) is expected
