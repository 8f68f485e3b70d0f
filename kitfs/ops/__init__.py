"""The verbs as functions. They print nothing, and report progress by a callback."""
