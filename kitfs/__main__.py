"""Run the command line as ``python -m kitfs``."""

from kitfs.cli.main import main

main()
