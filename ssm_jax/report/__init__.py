"""Reports of evaluations: self-contained HTML pages, and tables beside those of the paper."""
