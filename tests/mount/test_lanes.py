"""If each connection to the registry is slow, a mount opens several connections."""

from __future__ import annotations

import hashlib
import random

from tests.host import Host, wait_until
from tests.kits import build, kit_tar, part
from tests.registry_process import RegistryProcess
from tests.relay import Relay

RATE = 12 << 20  # bytes per second of each connection
DATA = random.Random(11).randbytes(1 << 20) * 144


def test_a_limit_for_each_connection_is_met_by_several_connections(registry: RegistryProcess, host: Host) -> None:
    """When a file is read from start to end, the mount opens a second connection.

    Few bytes are received twice, and the layer becomes verified.
    """
    kit = build([part("model", "m", kit_tar({"m/w.bin": DATA}))])
    registry.push(kit, "lanes/kit")
    with Relay(registry.port, rate=RATE) as relay:
        mount = host.mount(f"{relay.host}/lanes/kit:v1")
        digest = hashlib.sha256()
        with (mount / "m/w.bin").open("rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
        assert digest.digest() == hashlib.sha256(DATA).digest()
        large = [moved for moved in relay.connections if moved > 8 << 20]
        assert len(large) >= 2, relay.connections
        assert relay.moved < 1.5 * len(DATA)
        wait_until(lambda: host.status(mount)["layers"][0]["state"] == "verified", f"{host.status(mount)}")
        host.umount(mount)
