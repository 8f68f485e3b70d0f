"""The verbs of the command line, as functions. They print nothing, and report progress by a callback."""
