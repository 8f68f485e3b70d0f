"""The Python interface: kits as objects, files as file objects, and the verbs as functions."""
