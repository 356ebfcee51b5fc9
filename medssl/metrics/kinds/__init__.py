"""How predictions are scored, one file for each kind of label: rows, tables, summaries, measures to compare."""
