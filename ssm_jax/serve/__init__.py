"""A local server: uploads in, the report of a scan and its files out."""
