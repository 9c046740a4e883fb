"""Configurations of runs: every file defines get_config()."""
