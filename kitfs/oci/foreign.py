"""Define the layers of models that other tools publish: Docker Model Runner, Ollama, and weights of RamaLama.

These manifests name no files, or only some of them, so a file gets the name that its media type suggests. Sources:
docker/model-runner (its package ``types``), the manifests of registry.ollama.ai, and CNCF model-spec's media types of
single weight files. This module does no I/O.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

DOCKER_CONFIG: Final = re.compile(r"application/vnd\.docker\.ai\.model\.config\.v\d+(?:\.\d+)?\+json")
OLLAMA: Final = "application/vnd.ollama.image."


class ForeignLayer(NamedTuple):
    """What a foreign media type says of a layer: its kind, "raw" or "tar", and the name of its file.

    ``name`` is "" if the layer has the names itself, as a tar does, or must have an annotation.
    """

    kind: str
    format: str
    name: str


LAYERS: Final = {
    "application/vnd.docker.ai.gguf.v3": ForeignLayer("model", "raw", "model.gguf"),
    "application/vnd.docker.ai.model.file.v1+gguf": ForeignLayer("model", "raw", "model.gguf"),
    "application/vnd.docker.ai.safetensors": ForeignLayer("model", "raw", "model.safetensors"),
    "application/vnd.docker.ai.dduf": ForeignLayer("model", "raw", "model.dduf"),
    "application/vnd.docker.ai.mmproj": ForeignLayer("modelpart", "raw", "mmproj.gguf"),
    "application/vnd.docker.ai.chat.template.jinja": ForeignLayer("modelpart", "raw", "chat_template.jinja"),
    "application/vnd.docker.ai.model.file": ForeignLayer("modelpart", "raw", ""),
    "application/vnd.docker.ai.vllm.config.tar": ForeignLayer("modelpart", "tar", ""),
    "application/vnd.docker.ai.dir.tar": ForeignLayer("modelpart", "tar", ""),
    "application/vnd.docker.ai.license": ForeignLayer("docs", "raw", "LICENSE"),
    "application/vnd.cncf.model.weight.v1.gguf": ForeignLayer("model", "raw", "model.gguf"),
    "application/vnd.cncf.model.weight.v1.safetensors": ForeignLayer("model", "raw", "model.safetensors"),
    f"{OLLAMA}model": ForeignLayer("model", "raw", "model.gguf"),
    f"{OLLAMA}projector": ForeignLayer("modelpart", "raw", "projector.gguf"),
    f"{OLLAMA}adapter": ForeignLayer("modelpart", "raw", "adapter.gguf"),
    f"{OLLAMA}draft": ForeignLayer("modelpart", "raw", "draft.gguf"),
    f"{OLLAMA}template": ForeignLayer("modelpart", "raw", "template"),
    f"{OLLAMA}system": ForeignLayer("modelpart", "raw", "system"),
    f"{OLLAMA}params": ForeignLayer("modelpart", "raw", "params.json"),
    f"{OLLAMA}messages": ForeignLayer("modelpart", "raw", "messages.json"),
    f"{OLLAMA}license": ForeignLayer("docs", "raw", "LICENSE"),
}


def default_names(media_types: Sequence[str]) -> list[str]:
    """Return the name of the file of each layer, or "" if its media type suggests none.

    Several weights of one type are shards in their order, such as model-00001-of-00003.safetensors. Further files of
    another type are numbered, such as LICENSE.2.
    """
    names = [LAYERS[one].name if one in LAYERS else "" for one in media_types]
    count, seen, found = Counter(names), Counter[str](), []
    for name in names:
        seen[name] += 1
        stem, dot, suffix = name.partition(".")
        if name and count[name] > 1 and stem == "model":
            name = f"{stem}-{seen[name]:05}-of-{count[name]:05}{dot}{suffix}"
        elif name and seen[name] > 1:
            name = f"{stem}.{seen[name]}{dot}{suffix}"
        found.append(name)
    return found
