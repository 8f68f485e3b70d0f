"""kitfs:// for those who know fsspec."""

from __future__ import annotations

import fsspec
import pytest

from kitfs.errors import UsageError
from tests.unit.sdk.conftest import MODEL, Place


@pytest.fixture
def url(place: Place) -> str:
    return f"kitfs://{place.reference}"


def test_open_by_url(place: Place, url: str) -> None:
    with fsspec.open(f"{url}/data/train.csv", "rb", **place.fresh) as f:
        assert f.read() == b"a,b\n1,2\n3,4\n"
    with fsspec.open(f"{url}/data/train.csv", "r", **place.fresh) as f:
        assert f.readline() == "a,b\n"
    with pytest.raises(OSError, match="read-only"):
        fsspec.open(f"{url}/new", "wb", **place.fresh).open()
    with pytest.raises(FileNotFoundError):
        fsspec.open(f"{url}/nothing", "rb", **place.fresh).open()


def test_the_file_system(place: Place, url: str) -> None:
    fs, root = fsspec.url_to_fs(url, **place.fresh)
    assert root == place.reference
    assert sorted(fs.ls(root, detail=False)) == [f"{root}/Kitfile", f"{root}/data", f"{root}/model"]
    assert fs.find(root) == [f"{root}/Kitfile", f"{root}/data/train.csv", f"{root}/model/config.json", f"{root}/model/model.safetensors"]
    assert fs.glob(f"{root}/**/*.json") == [f"{root}/model/config.json"]
    assert fs.info(f"{root}/model")["type"] == "directory"
    assert fs.size(f"{root}/model/model.safetensors") == len(MODEL)
    assert fs.isdir(root)
    assert fs.isfile(f"{root}/Kitfile")
    assert not fs.exists(f"{root}/nothing")
    assert fs.cat_file(f"{root}/model/model.safetensors", 8, 20) == MODEL[8:20]
    assert fs.cat_file(f"{root}/model/model.safetensors", -5) == MODEL[-5:]
    assert fs.cat(f"{root}/data/train.csv") == b"a,b\n1,2\n3,4\n"
    assert fs.ls(f"{root}/data/train.csv", detail=False) == [f"{root}/data/train.csv"]
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{root}/nothing")


def test_copies_to_disk(place: Place, url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    fs, root = fsspec.url_to_fs(url, **place.fresh)
    target = tmp_path_factory.mktemp("got")
    fs.get(f"{root}/model", str(target / "model"), recursive=True)
    assert (target / "model" / "model.safetensors").read_bytes() == MODEL


def test_kits_of_the_store_and_digests(place: Place, url: str) -> None:
    fs, root = fsspec.url_to_fs(url, **place.options)
    digest = fs.ukey(root).split("/")[0]
    by_digest = f"kitfs://{place.reference.rsplit(':', 1)[0]}@{digest}/data/train.csv"
    with fsspec.open(by_digest, "rb", **place.options) as f:
        assert f.read(3) == b"a,b"


@pytest.mark.parametrize("wrong", ["kitfs://registry.example.com/repo/path", "kitfs://x", "kitfs://"])
def test_a_url_without_a_tag_has_no_place_where_the_path_begins(place: Place, wrong: str) -> None:
    fs, _ = fsspec.url_to_fs("kitfs://x/y:z", **place.fresh)
    with pytest.raises(UsageError, match="write kitfs://registry/repository:tag/path"):
        fs.ls(wrong)


def test_what_only_knows_file_objects_reads_a_kit(place: Place, url: str) -> None:
    """numpy over a file object, in ranges."""
    numpy = pytest.importorskip("numpy")
    with fsspec.open(f"{url}/model/model.safetensors", "rb", **place.fresh) as f:
        f.seek(len(MODEL) - 256 * 1024)
        assert numpy.array_equal(numpy.frombuffer(f.read(), numpy.uint8)[:256], numpy.arange(256, dtype=numpy.uint8))
