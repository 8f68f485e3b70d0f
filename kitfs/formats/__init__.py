"""Headers of model files: safetensors and GGUF. Only headers are read, never the values of tensors."""
