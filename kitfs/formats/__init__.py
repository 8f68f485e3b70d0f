"""Read the headers of model files (safetensors and GGUF). The values of tensors are never read."""
