"""kitfs: KitOps ModelKits and CNCF ModelPacks as lazily filled, read-only directories."""

__version__ = "0.1.0"
