"""A small model that llama.cpp can run, with random weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH = 256
HIDDEN = 512
HEADS = 4
LAYERS = 2


def write_llama(path: Path) -> None:
    """Write a GGUF file of 5.6 MiB for the architecture llama, with 2 layers and a vocabulary of bytes and letters."""
    kinds = gguf.TokenType
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, "▁", *(f"▁{letter}" for letter in letters)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *[kinds.NORMAL] * len(words)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(len(tokens))])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    random = np.random.default_rng(1)
    for name, shape in _shapes(len(tokens)).items():
        values = np.ones(shape) if "norm" in name else random.standard_normal(shape) / 10
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Return name → shape of the tensors. The names do not have the ending ``.weight``."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (vocabulary, WIDTH)}
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        shapes |= {f"{block}.attn_norm": (WIDTH,), f"{block}.ffn_norm": (WIDTH,)}
        shapes |= {f"{block}.attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        shapes |= {f"{block}.ffn_{part}": (HIDDEN, WIDTH) for part in ("gate", "up")}
        shapes[f"{block}.ffn_down"] = (WIDTH, HIDDEN)
    return shapes | {"output_norm": (WIDTH,), "output": (vocabulary, WIDTH)}
