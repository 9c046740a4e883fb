"""Whole scans: what scanners write, predicted slice by slice and summed up."""
