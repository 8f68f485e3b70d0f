"""The layers of Docker Model Runner and Ollama get the names that their media types suggest."""

from __future__ import annotations

from kitfs.oci.foreign import LAYERS, OLLAMA, default_names

DOCKER = "application/vnd.docker.ai."


def test_single_files_have_plain_names() -> None:
    types = [f"{DOCKER}gguf.v3", f"{DOCKER}license", f"{DOCKER}chat.template.jinja", f"{DOCKER}dir.tar", "text/plain"]
    assert default_names(types) == ["model.gguf", "LICENSE", "chat_template.jinja", "", ""]


def test_several_weights_are_shards_and_other_files_are_numbered() -> None:
    types = [f"{DOCKER}safetensors", f"{OLLAMA}license", f"{DOCKER}safetensors", f"{OLLAMA}license", f"{OLLAMA}params"]
    assert default_names(types) == [
        "model-00001-of-00002.safetensors",
        "LICENSE",
        "model-00002-of-00002.safetensors",
        "LICENSE.2",
        "params.json",
    ]
    assert default_names([f"{OLLAMA}adapter"] * 2) == ["adapter.gguf", "adapter.2.gguf"]


def test_every_layer_is_a_raw_file_with_a_name_or_a_tar() -> None:
    unnamed = {name for name, layer in LAYERS.items() if not layer.name}
    assert {LAYERS[name].format for name in unnamed - {f"{DOCKER}model.file"}} == {"tar"}
