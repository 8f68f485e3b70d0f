"""Valid and broken OCI layouts on disk are read, as directories and as archives."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kitfs.errors import IntegrityError, KitfsError, ManifestError, NotFound, UnsupportedLayer
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, LayoutReference
from kitfs.registry.layout import Layout, open_layout
from tests import kits

KIT = kits.build([kits.part("model", "w.bin", b"weights" * 1000, format="raw")])
LAYER = Descriptor("", Digest(KIT.layers[0]), 7000)
INDEX_ROW = {"mediaType": kits.MANIFEST, "digest": KIT.digest, "size": len(KIT.manifest)}


def archived(directory: Path) -> Path:
    target = directory.with_suffix(".tar")
    with tarfile.open(target, "w") as tar:
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            tar.add(path, f"./{path.relative_to(directory)}")  # member names as written by "tar -C dir ."
    return target


@pytest.fixture(params=["oci", "oci-archive"])
def opened(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], Layout]]:
    """Return a function that opens a layout. The layout is a directory, or an archive of that directory."""
    made: list[Layout] = []

    def opening(directory: Path) -> Layout:
        path = directory if request.param == "oci" else archived(directory)
        made.append(open_layout(LayoutReference(request.param, str(path))))
        return made[-1]

    yield opening
    for one in made:
        one.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a layout with one kit. The kit has the tag v1."""
    return kits.write_layout(KIT, tmp_path / "layout", "v1")


def rewrite_index(directory: Path, rows: list[dict[str, object]]) -> None:
    (directory / "index.json").write_bytes(kits.compact({"schemaVersion": 2, "manifests": rows}))


@pytest.mark.parametrize("identifier", ["v1", "", KIT.digest])
def test_a_manifest_is_found_by_tag_digest_or_alone(
    opened: Callable[[Path], Layout], directory: Path, identifier: str
) -> None:
    """If the layout has only one manifest, neither a tag nor a digest is needed."""
    descriptor, data = opened(directory).manifest(identifier)
    assert (descriptor.digest, data) == (KIT.digest, KIT.manifest)


def test_a_manifest_that_the_index_does_not_list_is_found_by_digest(
    opened: Callable[[Path], Layout], directory: Path
) -> None:
    rewrite_index(directory, [])
    assert opened(directory).manifest(KIT.digest)[1] == KIT.manifest


def test_blobs_are_read_in_place(opened: Callable[[Path], Layout], directory: Path) -> None:
    """A blob can be read in ranges. If a blob is read as a whole, its digest is checked. ``exists`` finds the blob."""
    layout = opened(directory)
    assert b"".join(bytes(view) for _, view in layout.blob(LAYER).read_range(7, 14)) == b"weights"
    assert layout.blob_bytes(LAYER, 7000) == b"weights" * 1000
    assert layout.exists(LAYER)
    assert not layout.exists(Descriptor("", Digest.of(b"none"), 4))
    with pytest.raises(ManifestError, match="the limit is 6999"):
        layout.blob_bytes(LAYER, 6999)


def test_a_missing_tag_names_those_that_are_there(opened: Callable[[Path], Layout], directory: Path) -> None:
    """If the layout does not have the tag, or if no tag is given, the error lists the tags of the layout."""
    layout = opened(directory)
    with pytest.raises(NotFound, match=r"the tag 'v2' does not exist \(the layout contains v1\)"):
        layout.resolve("v2")
    other = {**INDEX_ROW, "digest": Digest.of(b"other"), "annotations": {"org.opencontainers.image.ref.name": "v0"}}
    rewrite_index(directory, [{**INDEX_ROW, "annotations": {"org.opencontainers.image.ref.name": "v1"}}, other])
    with pytest.raises(NotFound, match=r"name one of its manifests by a tag \(the layout contains v0, v1\)"):
        opened(directory).resolve("")


def test_one_manifest_under_two_tags_needs_no_tag(opened: Callable[[Path], Layout], directory: Path) -> None:
    """If all tags of a layout name the same manifest, no tag is needed."""
    rewrite_index(
        directory, [{**INDEX_ROW, "annotations": {"org.opencontainers.image.ref.name": n}} for n in ("a", "b")]
    )
    assert opened(directory).resolve("").digest == KIT.digest


def test_referrers_are_found_under_the_tag_that_stands_in_for_the_api(
    opened: Callable[[Path], Layout], directory: Path
) -> None:
    """A layout lists referrers under the tag sha256-<hex>, as in distribution-spec."""
    row = {"mediaType": kits.MANIFEST, "digest": Digest.of(b"sig"), "size": 3, "artifactType": "a/sig"}
    listed = kits.compact({"schemaVersion": 2, "manifests": [row]})
    (directory / "blobs/sha256" / kits.sha256(listed).partition(":")[2]).write_bytes(listed)
    tag = {"org.opencontainers.image.ref.name": KIT.digest.replace(":", "-")}
    rewrite_index(
        directory,
        [INDEX_ROW, {"mediaType": kits.INDEX, "digest": kits.sha256(listed), "size": len(listed), "annotations": tag}],
    )
    layout = opened(directory)
    assert [d.digest for d in layout.referrers(Digest(KIT.digest))] == [Digest.of(b"sig")]
    assert layout.referrers(Digest(KIT.digest), "a/other") == ()


def test_a_blob_that_is_not_what_it_should_be(opened: Callable[[Path], Layout], directory: Path) -> None:
    """A blob of a wrong size, a blob with wrong bytes and a missing blob raise different errors."""
    path = directory / "blobs" / KIT.layers[0].replace(":", "/")
    path.write_bytes(b"WEIGHTS" * 1000)
    with pytest.raises(IntegrityError, match="does not match its digest"):
        opened(directory).blob_bytes(LAYER, 7000)
    path.write_bytes(b"short")
    with pytest.raises(IntegrityError, match="has 5 bytes, but the descriptor declares 7000"):
        opened(directory).blob(LAYER)
    path.unlink()
    with pytest.raises(NotFound, match="does not exist"):
        opened(directory).blob(LAYER)


BROKEN: list[tuple[str, bytes | None, type[KitfsError], str]] = [
    ("index.json", None, NotFound, "not an OCI layout: it has no index.json"),
    ("oci-layout", None, NotFound, "not an OCI layout: it has no oci-layout"),
    ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', ManifestError, "version '2.0.0' is not supported"),
    ("oci-layout", b"nonsense", ManifestError, "version 'unknown' is not supported"),
    ("oci-layout", b"[1]", ManifestError, "version 'unknown' is not supported"),
    (
        "oci-layout",
        b'{"imageLayoutVersion":"1.0.0","imageLayoutVersion":"1.0.0"}',
        ManifestError,
        "ambiguous oci-layout: an object has the key 'imageLayoutV",
    ),
    (
        "oci-layout",
        b'{"imageLayoutVersion":"1.0.0","ImageLayoutVersion":"2"}',
        ManifestError,
        "ambiguous oci-layout: .* in case only",
    ),
    (
        "index.json",
        b'{"manifests":[],"manifests":[]}',
        ManifestError,
        "ambiguous manifest: an object has the key 'manifests' twice",
    ),
    ("index.json", b'{"manifests":[],"layers":[]}', ManifestError, "ambiguous: this index also has 'layers'"),
    ("index.json", b"{", ManifestError, "not a manifest"),
    ("index.json", b"{}", ManifestError, "it has no manifests"),
    ("index.json", b"[" * 100_000, ManifestError, "nested too deeply"),
]


@pytest.mark.parametrize(("name", "data", "kind", "words"), BROKEN)
def test_broken_layouts(
    opened: Callable[[Path], Layout], directory: Path, name: str, data: bytes | None, kind: type[KitfsError], words: str
) -> None:
    """A broken layout causes an error of one line with the layout's path."""
    (directory / name).unlink()
    if data is not None:
        (directory / name).write_bytes(data)
    with pytest.raises(kind, match=words) as caught:
        opened(directory).manifest("v1")
    assert str(directory) in str(caught.value)


def test_an_index_of_hundreds_of_megabytes_is_not_read(opened: Callable[[Path], Layout], directory: Path) -> None:
    """An index.json above the limit is refused before it is read."""
    with (directory / "index.json").open("r+b") as file:
        file.truncate(17 << 20)
    with pytest.raises(ManifestError, match=r"index\.json has 17825792 bytes"):
        opened(directory).manifest("v1")


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_nothing_there(tmp_path: Path, kind: str) -> None:
    """If the path does not exist, NotFound names the path."""
    with pytest.raises(NotFound, match=r"no such|does not exist"):
        open_layout(LayoutReference(kind, str(tmp_path / "none")))


def test_files_that_are_not_archives(tmp_path: Path) -> None:
    """A directory, a text file, a compressed archive and a truncated archive are refused."""
    with pytest.raises(KitfsError, match=str(tmp_path)):
        open_layout(LayoutReference("oci-archive", str(tmp_path)))
    path = tmp_path / "a.tar"
    path.write_bytes(b"hello, world" * 1000)
    with pytest.raises(ManifestError, match="not an OCI archive"):
        open_layout(LayoutReference("oci-archive", str(path)))
    path.write_bytes(gzip.compress(b"x" * 10_000))
    with pytest.raises(UnsupportedLayer, match="decompress it first"):
        open_layout(LayoutReference("oci-archive", str(path)))


def test_an_archive_that_was_cut(tmp_path: Path) -> None:
    """A truncated archive is refused when it is opened or when the missing part is read."""
    whole = kits.write_archive(KIT, tmp_path / "kit.tar", "v1").read_bytes()
    path = tmp_path / "cut.tar"
    for keep in (len(whole) // 4, len(whole) // 2, 3 * len(whole) // 4):
        path.write_bytes(whole[:keep])
        with pytest.raises(KitfsError, match=r"cut\.tar"):
            _read_all(path)


def _read_all(path: Path) -> None:
    layout = open_layout(LayoutReference("oci-archive", str(path)))
    try:
        data = layout.manifest("v1")[1]
        for row in [json.loads(data)["config"], *json.loads(data)["layers"]]:
            layout.blob_bytes(Descriptor.from_json(row), 1 << 20)
    finally:
        layout.close()


def test_names_that_leave_the_archive_reach_nothing(tmp_path: Path) -> None:
    """Members whose names lead out of the archive have no effect, because members are only looked up by name."""
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("../../oci-layout", "/index.json"):
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    layout = open_layout(LayoutReference("oci-archive", str(path)))
    with pytest.raises(NotFound, match="not an OCI layout"):
        layout.manifest("v1")
    layout.close()


@pytest.mark.parametrize(
    "name", ["oci-layout", "index.json", "blobs", "blobs/sha256", f"blobs/sha256/{KIT.layers[0][7:]}"]
)
def test_no_link_in_a_directory_is_followed(directory: Path, name: str) -> None:
    """A symbolic link in a layout is refused, because it may lead to a private file of the user.

    The error names the link.
    """
    (directory / name).rename(directory.parent / "elsewhere")
    (directory / name).symlink_to(directory.parent / "elsewhere")

    def use() -> None:
        layout = open_layout(LayoutReference("oci", str(directory)))
        layout.manifest("v1")
        layout.blob(LAYER)

    with pytest.raises(ManifestError, match=f"{name.rpartition('/')[2]} is a symbolic link"):
        use()


@pytest.mark.parametrize("name", ["oci-layout", "index.json", f"blobs/sha256/{KIT.digest[7:]}"])
def test_a_fifo_in_a_directory_is_not_waited_for(directory: Path, name: str) -> None:
    """A FIFO in a layout is refused without waiting for a writer."""
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(ManifestError, match="not a regular file"):
        open_layout(LayoutReference("oci", str(directory))).manifest("v1")


def test_an_archive_that_is_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotFound, match="not a regular file"):
        open_layout(LayoutReference("oci-archive", str(tmp_path / "fifo")))


def test_a_directory_and_an_archive_may_be_named_by_a_link(opened: Callable[[Path], Layout], directory: Path) -> None:
    """The path that the user gives may be a symbolic link."""
    link = directory.parent / "link"
    link.symlink_to(directory)
    assert opened(link).manifest("v1")[1] == KIT.manifest
