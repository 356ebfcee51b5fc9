"""The verbs of the command line; the only room that knows Lightning."""
