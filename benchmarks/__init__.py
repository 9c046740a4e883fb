"""How long the stages and the whole paths take; `python -m benchmarks.run --help`."""
