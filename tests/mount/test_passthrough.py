"""With FUSE passthrough the kernel reads verified files of raw layers from the store, even without the daemon."""

from __future__ import annotations

import errno
import mmap
import os
import platform
import random
import shutil
import time

import pytest

from kitfs.fuse.passthrough import SOON
from tests.fakes.faults import Lie
from tests.fakes.registry import FakeRegistry
from tests.host import Host, wait_until
from tests.kits import build, part

KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0 or KERNEL < (6, 9), reason="not here: passthrough needs root and Linux 6.9"),
]
MiB = 1 << 20
WEIGHTS = random.Random(31).randbytes(8 * MiB)


@pytest.fixture
def ref(fake: FakeRegistry) -> str:
    """Return the reference of a kit of one raw file."""
    return fake.put_kit("team/kit", build([part("model", "w.bin", WEIGHTS, format="raw")]), "v1")


def test_reads_go_on_without_the_daemon(host: Host, ref: str) -> None:
    """After the daemon was killed, a file that is open or mapped can still be read. It cannot be opened again."""
    host.kitfs("pull", ref)
    mount = host.mount(ref)
    with (mount / "w.bin").open("rb", buffering=0) as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            host.kill(mount)
            assert os.pread(file.fileno(), len(WEIGHTS), 0) == WEIGHTS
            assert bytes(mapped) == WEIGHTS
        with pytest.raises(OSError, match=r".") as e:
            (mount / "w.bin").open("rb")
        assert e.value.errno == errno.ENOTCONN


def test_file_is_passthrough_once_its_layer_is_verified(host: Host, ref: str) -> None:
    """If a file was opened after its layer was verified, it can be read even after the daemon was killed."""
    mount = host.mount(ref)
    with (mount / "w.bin").open("rb", buffering=0) as old:
        assert os.pread(old.fileno(), 4096, 0) == WEIGHTS[:4096]
        assert (mount / "w.bin").read_bytes() == WEIGHTS
        wait_until(
            lambda: os.getxattr(mount / "w.bin", "user.kitfs.state") == b"verified", "the layer was not verified"
        )
        os.posix_fadvise(old.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(old.fileno(), len(WEIGHTS), 0) == WEIGHTS
        time.sleep(2 * SOON)  # the kernel then looks the name up again
        with (mount / "w.bin").open("rb", buffering=0) as new:
            host.kill(mount)
            os.posix_fadvise(old.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(new.fileno(), len(WEIGHTS), 0) == WEIGHTS
            with pytest.raises(OSError, match=r".") as e:
                os.pread(old.fileno(), 4096, 0)
            assert e.value.errno == errno.ENOTCONN


def test_evicted_blob_is_read_to_its_end(host: Host, ref: str) -> None:
    """If a blob is removed from the store while a file is open, every byte of the file can still be read."""
    host.kitfs("pull", ref)
    mount = host.mount(ref)
    with (mount / "w.bin").open("rb", buffering=0) as file:
        shutil.rmtree(host.cache / "blobs")
        assert os.pread(file.fileno(), len(WEIGHTS), 0) == WEIGHTS


def test_unverified_file_is_never_passthrough(host: Host, fake: FakeRegistry, ref: str) -> None:
    """If a complete layer has wrong bytes, its files cannot be opened, with passthrough or without."""
    mount = host.mount(ref)
    fake.fail("/blobs/", Lie(1000))
    try:
        (mount / "w.bin").read_bytes()
    except OSError:
        pass
    wait_until(lambda: host.status(mount)["integrity_failures"] == 1, "the wrong bit was not found")
    with pytest.raises(OSError, match=r".") as e:
        (mount / "w.bin").open("rb")
    assert e.value.errno == errno.EIO
