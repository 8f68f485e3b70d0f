"""The Python interface: kits are objects, their files are file objects, and the verbs of the CLI are functions."""
