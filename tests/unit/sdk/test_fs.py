"""fsspec can open kitfs:// URLs."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest

import kitfs
from kitfs.errors import UsageError
from tests.unit.sdk.conftest import MODEL, Place


@pytest.fixture
def url(place: Place) -> str:
    return f"kitfs://{place.reference}"


def test_a_file_is_opened_by_its_url(place: Place, url: str) -> None:
    with fsspec.open(f"{url}/data/train.csv", "rb", **place.fresh) as f:
        assert f.read() == b"a,b\n1,2\n3,4\n"
    with fsspec.open(f"{url}/data/train.csv", "r", **place.fresh) as f:
        assert f.readline() == "a,b\n"
    with pytest.raises(OSError, match="read-only"):
        fsspec.open(f"{url}/new", "wb", **place.fresh).open()
    with pytest.raises(FileNotFoundError):
        fsspec.open(f"{url}/nothing", "rb", **place.fresh).open()


def test_directories_and_files_can_be_listed_described_and_read(place: Place, url: str) -> None:
    fs, root = fsspec.url_to_fs(url, **place.fresh)
    assert root == place.reference
    assert sorted(fs.ls(root, detail=False)) == [f"{root}/Kitfile", f"{root}/data", f"{root}/model"]
    assert fs.find(root) == [
        f"{root}/Kitfile",
        f"{root}/data/train.csv",
        f"{root}/model/config.json",
        f"{root}/model/model.safetensors",
    ]
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


def test_a_directory_can_be_copied_to_disk(place: Place, url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    fs, root = fsspec.url_to_fs(url, **place.fresh)
    target = tmp_path_factory.mktemp("got")
    fs.get(f"{root}/model", str(target / "model"), recursive=True)
    assert (target / "model" / "model.safetensors").read_bytes() == MODEL


def test_a_digest_may_stand_for_the_tag(place: Place, url: str) -> None:
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
    """numpy reads an array from a file object of a kit."""
    numpy = pytest.importorskip("numpy")
    with fsspec.open(f"{url}/model/model.safetensors", "rb", **place.fresh) as f:
        f.seek(len(MODEL) - 256 * 1024)
        assert numpy.array_equal(numpy.frombuffer(f.read(), numpy.uint8)[:256], numpy.arange(256, dtype=numpy.uint8))


def test_an_etag_and_times_tell_caches_when_a_tag_has_moved(place: Place) -> None:
    """The ETag changes when the tag moves.

    The library datasets uses the ETag. ``modified`` returns the time of the kit.
    """
    fs, root = fsspec.url_to_fs(f"kitfs://{place.reference}", **place.fresh)
    path = f"{root}/data/train.csv"
    before = fs.info(path)
    assert before == fs.ls(path)[0] == next(one for one in fs.ls(f"{root}/data") if one["name"] == path)
    assert before["ETag"] == fs.ukey(path)
    kitfs.pack(place.tree, place.reference, created=86_400 * 365, kit_version="v1.5.0", **place.options)
    kitfs.push(place.reference, **place.options)
    assert fs.info(path)["ETag"] == before["ETag"], "the open kit did not keep its ETag"
    fs.invalidate_cache()
    after = fs.info(path)
    assert after["ETag"] != before["ETag"]
    assert fs.modified(path) == fs.created(path) == datetime.fromtimestamp(after["mtime"], UTC)


def test_a_file_has_what_files_of_fsspec_have(place: Place, url: str) -> None:
    with fsspec.filesystem("kitfs", **place.fresh).open(f"{url}/model/model.safetensors", block_size=4096) as f:
        assert (f.size, f.blocksize, f.loc, f.mode) == (len(MODEL), 4096, 0, "rb")
        assert f.details["size"] == len(MODEL)
        f.seek(-10, 2)
        assert f.read(100) == MODEL[-10:]
    fs = fsspec.filesystem("kitfs", **place.fresh)
    assert fs.read_block(f"{url}/data/train.csv", 1, 4, b"\n") == b"1,2\n"


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # fsspec's MMapCache does not close its own file
@pytest.mark.parametrize("protocol", ["blockcache", "filecache", "simplecache"])
def test_caches_of_fsspec_lie_over_kits(place: Place, url: str, tmp_path: Path, protocol: str) -> None:
    options = {"kitfs": place.fresh, protocol: {"cache_storage": str(tmp_path / "cached")}}
    for _ in range(2):
        with fsspec.open(f"{protocol}::{url}/model/model.safetensors", "rb", **options) as f:
            f.seek(1000)
            assert f.read(1000) == MODEL[1000:2000]


WRITES: dict[str, Callable[[Any, str], Any]] = {
    "mkdir": lambda fs, path: fs.mkdir(path),
    "makedirs": lambda fs, path: fs.makedirs(path, exist_ok=True),
    "mkdirs": lambda fs, path: fs.mkdirs(path),
    "rmdir": lambda fs, path: fs.rmdir(path),
    "rm": lambda fs, path: fs.rm(path, recursive=True),
    "rm_file": lambda fs, path: fs.rm_file(path),
    "delete": lambda fs, path: fs.delete(path),
    "mv": lambda fs, path: fs.mv(path, path + "2"),
    "rename": lambda fs, path: fs.rename(path, path + "2"),
    "cp": lambda fs, path: fs.cp(path, path + "2"),
    "cp_file": lambda fs, path: fs.cp_file(path, path + "2"),
    "touch": lambda fs, path: fs.touch(path),
    "pipe": lambda fs, path: fs.pipe(path, b"x"),
    "pipe_file": lambda fs, path: fs.pipe_file(path, b"x"),
    "put": lambda fs, path: fs.put("/etc/hostname", path),
    "put_file": lambda fs, path: fs.put_file("/etc/hostname", path),
    "open": lambda fs, path: fs.open(path, "wb"),
    "append": lambda fs, path: fs.open(path, "ab"),
    "write_text": lambda fs, path: fs.write_text(path, "x"),
}


@pytest.mark.parametrize("write", WRITES)
def test_whatever_writes_says_that_kits_are_read_only(place: Place, url: str, write: str) -> None:
    fs = fsspec.filesystem("kitfs", **place.fresh)
    with pytest.raises(OSError, match="kits are read-only") as raised:
        WRITES[write](fs, f"{url}/data/train.csv")
    assert raised.value.errno == errno.EROFS


def test_a_tag_that_does_not_exist_is_a_file_that_does_not_exist(place: Place) -> None:
    fs = fsspec.filesystem("kitfs", **place.fresh)
    missing = f"{place.reference}9/data/train.csv"
    for use in (fs.info, fs.ls, fs.open, fs.cat_file, fs.modified, fs.ukey):
        with pytest.raises(FileNotFoundError) as raised:
            use(missing)
        assert raised.value.errno == errno.ENOENT
    assert not fs.exists(missing)


def test_a_directory_is_not_a_file(place: Place, url: str) -> None:
    fs = fsspec.filesystem("kitfs", **place.fresh)
    for use in (fs.open, fs.cat_file):
        with pytest.raises(IsADirectoryError) as raised:
            use(f"{url}/data")
        assert raised.value.errno == errno.EISDIR


def test_only_chooses_parts_of_a_kit(place: Place) -> None:
    fs, root = fsspec.url_to_fs(f"kitfs://{place.reference}", only="datasets", **place.fresh)
    assert fs.find(root) == [f"{root}/data/train.csv"]


def test_labels_choose_a_kit_of_an_index(place: Place) -> None:
    name = place.reference.replace(":v1", ":all")
    kitfs.index.create(name, **place.options)
    kitfs.index.add(name, place.reference, labels={"bits": "4"}, **place.options)
    kitfs.index.push(name, **place.options)
    with fsspec.open(f"kitfs://{name}/data/train.csv", labels={"bits": "4"}, **place.fresh) as f:
        assert f.read() == b"a,b\n1,2\n3,4\n"
    fs = fsspec.filesystem("kitfs", labels={"bits": "8"}, **place.fresh)
    with pytest.raises(UsageError, match="no ModelKit in the index has bits=8"):
        fs.ls(f"kitfs://{name}")


def test_a_wrong_option_is_an_error_at_once() -> None:
    with pytest.raises(TypeError, match="no such option: chache-dir"):
        fsspec.filesystem("kitfs", chache_dir="/x")


def test_a_file_system_is_pickled_with_what_its_tags_mean(place: Place, url: str) -> None:
    """A file system is pickled, and then its tag moves. The unpickled file system still reads the earlier bytes.

    The original file system reads the new bytes.
    """
    fs = fsspec.filesystem("kitfs", **place.fresh)
    path = f"{url}/data/train.csv"
    with fs.open(path) as f:
        f.read(4)
        pickled, pickled_file = pickle.dumps(fs), pickle.dumps(f)
    assert pickle.loads(pickled) is fs
    (place.tree / "data" / "train.csv").write_text("9,9\n")
    kitfs.pack(place.tree, place.reference, **place.options)
    kitfs.push(place.reference, **place.options)
    fs.invalidate_cache()
    assert fs.cat_file(path) == b"9,9\n"
    again = pickle.loads(pickled)
    assert again is not fs
    assert again.cat_file(path) == b"a,b\n1,2\n3,4\n"
    assert fs.cat_file(path) == b"9,9\n"
    with pickle.loads(pickled_file) as f:
        assert (f.tell(), f.read()) == (4, b"1,2\n3,4\n")


def test_a_pickled_file_system_holds_no_password(place: Place) -> None:
    fs = fsspec.filesystem("kitfs", proxy="http://me:hunter2@127.0.0.1:9", **place.fresh)
    assert b"hunter2" not in pickle.dumps(fs)
