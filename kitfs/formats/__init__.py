"""Headers of model files: safetensors and GGUF."""
