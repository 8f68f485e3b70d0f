"""Models that Docker Model Runner, Ollama and RamaLama publish are mounted as named files."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.host import Host
from tests.kits import MANIFEST, Kit, compact, kit_tar
from tests.registry_process import RegistryProcess

pytestmark = pytest.mark.mount
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
WEIGHTS = b"GGUF" + bytes(range(256)) * 1000


def foreign(
    config_type: str, config: object, layers: list[tuple[str, bytes, str]], media_type: str = MANIFEST, **more: str
) -> Kit:
    """Build an artifact whose layers are (media type, bytes, path in an annotation or "")."""

    def descriptor(kind: str, data: bytes, path: str = "") -> dict[str, object]:
        made: dict[str, object] = {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}"}
        made["size"] = len(data)
        return made | ({"annotations": {"org.cncf.model.filepath": path}} if path else {})

    data = compact(config)
    listed = [descriptor(*layer) for layer in layers]
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": descriptor(config_type, data), "layers": listed}
    blobs = {f"sha256:{hashlib.sha256(one).hexdigest()}": one for one in (data, *(layer[1] for layer in layers))}
    return Kit(compact(manifest | more), data, dict(blobs), tuple(str(one["digest"]) for one in listed))


DOCKER = foreign(
    "application/vnd.docker.ai.model.config.v0.2+json",
    {"config": {"format": "gguf"}, "descriptor": {"created": "2026-01-01T00:00:00Z"}},
    [
        ("application/vnd.docker.ai.gguf.v3", WEIGHTS, ""),
        ("application/vnd.docker.ai.model.file", b"{}", "config.json"),
        ("application/vnd.docker.ai.vllm.config.tar", kit_tar({"tokenizer/vocab.txt": b"a b"}), ""),
        ("application/vnd.docker.ai.license", b"MIT", ""),
    ],
)
OLLAMA = foreign(
    "application/vnd.docker.container.image.v1+json",
    {"model_format": "gguf", "model_family": "llama"},
    [
        ("application/vnd.ollama.image.model", WEIGHTS, ""),
        ("application/vnd.ollama.image.template", b"{{ .Prompt }}", ""),
        ("application/vnd.ollama.image.params", b'{"stop": []}', ""),
        ("application/vnd.ollama.image.license", b"MIT", ""),
    ],
    DOCKER_MANIFEST,
)
RAMALAMA = foreign(
    "application/vnd.cncf.model.config.v1+json",
    {"descriptor": {"name": "tiny"}, "config": {"format": "gguf"}},
    [("application/vnd.cncf.model.weight.v1.gguf", WEIGHTS, "tiny.gguf")],
    artifactType="application/vnd.cncf.model.manifest.v1+json",
)


@pytest.mark.parametrize(
    ("kit", "main", "others"),
    [
        (DOCKER, "model.gguf", {"config.json": b"{}", "tokenizer/vocab.txt": b"a b", "LICENSE": b"MIT"}),
        (OLLAMA, "model.gguf", {"template": b"{{ .Prompt }}", "params.json": b'{"stop": []}', "LICENSE": b"MIT"}),
        (RAMALAMA, "tiny.gguf", {}),
    ],
    ids=["docker", "ollama", "ramalama"],
)
def test_the_files_of_a_model_have_names(
    host: Host, registry: RegistryProcess, request: pytest.FixtureRequest, kit: Kit, main: str, others: dict[str, bytes]
) -> None:
    ref = registry.push(kit, f"foreign/{request.node.callspec.id}")
    mount = host.mount(ref)
    files = {str(path.relative_to(mount.path)): path for path in mount.path.rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in files.items()} == {main: WEIGHTS, **others}
    found = json.loads(host.kitfs("resolve", ref, "--json").stdout)
    assert (found["format"], found["main"]) == ("gguf", f"{found['path']}/{main}")
    unpacked = host.root / "unpacked"
    host.kitfs("unpack", ref, "-d", unpacked)
    assert (unpacked / main).read_bytes() == WEIGHTS


def test_a_file_without_a_name_is_refused(host: Host, registry: RegistryProcess) -> None:
    kit = foreign(
        "application/vnd.docker.ai.model.config.v0.2+json",
        {},
        [("application/vnd.docker.ai.model.file", b"{}", "")],
    )
    done = host.kitfs("mount", registry.push(kit, "foreign/unnamed"), host.mnt / "a", check=False)
    assert done.returncode == 8
    assert "unknown file path for layer: no org.cncf.model.filepath annotation" in done.stderr
