"""The command line: a verb, a recipe, and overrides of its keys; help is given without importing torch."""

from medssl.cli.entry import check_early, find_verb, main, parse, run_verb
from medssl.cli.verbs import VERBS

__all__ = ["VERBS", "check_early", "find_verb", "main", "parse", "run_verb"]
