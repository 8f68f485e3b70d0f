"""The verbs of the command line, in one module for each group of verbs."""
