"""``python -m kitfs``."""

from kitfs.cli.main import main

main()
