"""The verbs grouped by task, and examples for every verb. ``kitfs --help`` and ``kitfs VERB --help`` show them.

A test parses every example as the command line does, so that no example contains an unknown verb or option.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

TASKS: Final = (  # in the order of --help: the most frequent tasks come first
    (
        "Use a kit",
        (
            "mount",
            "umount",
            "mounts",
            "status",
            "resolve",
            "run",
            "seal",
            "upgrade",
            "warm",
            "logs",
            "ls",
            "cat",
            "unpack",
        ),
    ),
    ("Make a kit and share it", ("init", "pack", "push", "pull", "import", "export", "convert")),
    ("Trust kits", ("sign", "verify", "chunk-table", "lineage", "approve", "sbom", "generate-key-pair")),
    ("Look after kits", ("list", "info", "inspect", "diff", "history", "tag", "remove", "index", "cache")),
    ("Registries", ("login", "logout", "serve")),
    ("Learn", ("demo", "help", "completion", "version")),
)

KIT: Final = "ghcr.io/team/llama:v1"
EXAMPLES: Final[Mapping[str, tuple[str, ...]]] = {
    "mount": (
        f"kitfs mount {KIT} /models",
        f"kitfs mount {KIT} /models --only model --file-mode 644",
        "kitfs mount ghcr.io/team/llama:all /models --label quantization=q4_0",
    ),
    "umount": ("kitfs umount /models", "kitfs umount --all"),
    "mounts": ("kitfs mounts", "kitfs mounts --json"),
    "status": ("kitfs status", "kitfs status /models", "kitfs status /models --check --json"),
    "resolve": (
        f"kitfs resolve {KIT}",
        f"kitfs resolve {KIT} --print main",
        f"kitfs resolve {KIT} --only model --json",
    ),
    "run": (
        f"kitfs run {KIT} -- ls -l {{}}",
        f"kitfs run {KIT} --only model -- llama-cli -m {{main}} -p Hello",
    ),
    "seal": ("kitfs seal /models", "kitfs seal /models --json"),
    "upgrade": ("kitfs upgrade /models", "kitfs upgrade --all --json"),
    "warm": (f"kitfs warm {KIT}", f"kitfs warm {KIT} --only model --cache-size 200GiB"),
    "chunk-table": (f"kitfs chunk-table {KIT}", f"kitfs chunk-table {KIT} --push"),
    "logs": ("kitfs logs /models", "kitfs logs -f /models"),
    "ls": (f"kitfs ls {KIT}", f"kitfs ls -lhR {KIT} model"),
    "cat": (
        f"kitfs cat {KIT} model/config.json > config.json",
        f"kitfs cat {KIT} model/model.safetensors --tensor w > w.bin",
    ),
    "unpack": (
        f"kitfs unpack {KIT} -d llama",
        f"kitfs unpack {KIT} -d llama --only model,docs",
        f"kitfs unpack {KIT} -d data --only datasets:train --ignore-existing",
    ),
    "init": ("kitfs init .", "kitfs init ./llama --name llama --author Ann --force"),
    "pack": (
        f"kitfs pack . -t {KIT}",
        f"kitfs pack . -t {KIT} --layer-format raw --push --provenance",
        "kitfs pack . -f other/Kitfile -t llama:v1,latest",
    ),
    "push": (f"kitfs push {KIT}", f"kitfs push llama:v1 {KIT}"),
    "pull": (f"kitfs pull {KIT}", f"kitfs pull {KIT} --mirror ghcr.io=http://mirror:5000"),
    "import": (
        "kitfs import openai-community/gpt2",
        f"kitfs import https://git.example.com/team/llama.git --ref v1 -t {KIT} --push",
        "kitfs import oci:./layout:v1 -t llama:v1",
    ),
    "export": (f"kitfs export {KIT} oci:./layout:v1", f"kitfs export {KIT} oci-archive:llama.tar"),
    "convert": (
        f"kitfs convert {KIT} ghcr.io/team/llama-image:v1",
        f"kitfs convert {KIT} ghcr.io/team/llama-image:v1 --platform linux/amd64 --platform linux/arm64",
    ),
    "sign": (
        f"kitfs sign {KIT} --key cosign.key",
        f"kitfs sign {KIT} --key cosign.key --signature-format tag",
        f"kitfs sign {KIT} --key cosign.key --oms --bundle model.sig",
    ),
    "verify": (
        f"kitfs verify {KIT} --key cosign.pub",
        f"kitfs verify {KIT} --key cosign.pub --json",
        f"kitfs verify {KIT} --key cosign.pub --oms",
    ),
    "history": ("kitfs history ghcr.io/team/llama", "kitfs history ghcr.io/team/llama --last 2 --json"),
    "lineage": (
        f"kitfs lineage {KIT}",
        f"kitfs lineage {KIT} --key trainer.pub --key reviewer.pub",
        f"kitfs lineage {KIT} --policy policy.json --json",
    ),
    "approve": (
        f"kitfs approve {KIT} --key reviewer.key --note 'evaluated: 0.81 on the test set'",
        f"kitfs approve {KIT} --key reviewer.key --json",
    ),
    "sbom": (f"kitfs sbom {KIT} > sbom.json", f"kitfs sbom {KIT} --remote --format cyclonedx"),
    "generate-key-pair": ("kitfs generate-key-pair", "kitfs generate-key-pair --output-key-prefix team"),
    "list": ("kitfs list", "kitfs list ghcr.io/team/llama", "kitfs list --format '{{.Repo}} {{.Tags}}'"),
    "info": (f"kitfs info {KIT}", f"kitfs info {KIT} --remote --filter model.path"),
    "inspect": (f"kitfs inspect {KIT}", f"kitfs inspect --remote {KIT}"),
    "diff": (
        "kitfs diff ghcr.io/team/llama:v1 ghcr.io/team/llama:v2",
        "kitfs diff llama:v1 llama:v2 --files --content",
        f"kitfs diff local://{KIT} remote://{KIT} --tensors",
    ),
    "tag": (f"kitfs tag llama:v1 {KIT}", "kitfs tag llama:v1 llama:v1.0,latest"),
    "remove": (f"kitfs remove {KIT}", "kitfs remove --all", f"kitfs remove --remote {KIT}"),
    "index": (
        "kitfs index create ghcr.io/team/llama:all",
        "kitfs index add ghcr.io/team/llama:all ghcr.io/team/llama:q4 --label quantization=q4_0",
        "kitfs index push ghcr.io/team/llama:all",
    ),
    "index create": ("kitfs index create ghcr.io/team/llama:all", "kitfs index create llama:all --json"),
    "index add": (
        "kitfs index add llama:all llama:q4 --label quantization=q4_0",
        "kitfs index add llama:all llama:q4 --label 'gpu-' --annotate note=small",
    ),
    "index remove": (
        "kitfs index remove llama:all llama:q4",
        "kitfs index remove ghcr.io/team/llama:all ghcr.io/team/llama:q4 --json",
    ),
    "index delete": ("kitfs index delete llama:all", "kitfs index delete --all"),
    "index list": ("kitfs index list", "kitfs index list --format json"),
    "index info": ("kitfs index info llama:all", "kitfs index info --remote ghcr.io/team/llama:all"),
    "index inspect": ("kitfs index inspect llama:all", "kitfs index inspect --remote ghcr.io/team/llama:all"),
    "index push": (
        "kitfs index push ghcr.io/team/llama:all",
        "kitfs index push llama:all ghcr.io/team/llama:all",
    ),
    "index pull": ("kitfs index pull ghcr.io/team/llama:all", "kitfs index pull ghcr.io/team/llama:all --json"),
    "cache": ("kitfs cache info", "kitfs cache clear", "kitfs cache verify"),
    "cache info": ("kitfs cache info", "kitfs cache info --json"),
    "cache clear": ("kitfs cache clear", "kitfs cache clear --cache-dir /var/lib/kitfs"),
    "cache gc": ("kitfs cache gc", "kitfs cache gc --json"),
    "cache pin": ("kitfs cache pin ghcr.io/team/llama:v1", "kitfs cache pin ghcr.io/team/llama:v1 --json"),
    "cache unpin": ("kitfs cache unpin ghcr.io/team/llama:v1", "kitfs cache unpin ghcr.io/team/llama:v1 --json"),
    "cache verify": ("kitfs cache verify", "kitfs cache verify --json"),
    "login": ("kitfs login ghcr.io", "kitfs login ghcr.io -u ann --password-stdin < token.txt"),
    "logout": ("kitfs logout ghcr.io", "kitfs logout ghcr.io --json"),
    "serve": (
        "kitfs serve --root /srv/registry",
        "kitfs serve --listen 0.0.0.0:5000 --tls-cert tls.crt --tls-key tls.key --htpasswd users",
        "kitfs serve gc --root /srv/registry",
    ),
    "serve gc": ("kitfs serve gc --root /srv/registry", "kitfs serve gc --root /srv/registry --min-age 0"),
    "demo": ("kitfs demo", "kitfs demo --transport libfuse"),
    "help": ("kitfs help mount", "kitfs help index add", "kitfs help exit-codes"),
    "completion": ('eval "$(kitfs completion bash)"', "kitfs completion fish > ~/.config/fish/completions/kitfs.fish"),
    "version": ("kitfs version", "kitfs version --json"),
}

# Words of other tools, each with the verb to suggest for it. A group of verbs suggests only its own verbs.
SYNONYMS: Final[Mapping[str, str]] = {
    "rm": "remove",
    "rmi": "remove",
    "delete": "remove",
    "images": "list",
    "ls": "list",
    "ps": "mounts",
    "unmount": "umount",
    "fusermount": "umount",
    "log": "logs",
    "upload": "push",
    "download": "pull",
    "fetch": "pull",
    "clone": "pull",
    "prefetch": "warm",
    "preload": "warm",
    "build": "pack",
    "extract": "unpack",
    "show": "info",
    "compare": "diff",
    "keygen": "generate-key-pair",
    "registry": "serve",
    "prune": "cache",
    "gc": "serve",
}
