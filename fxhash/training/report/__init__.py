"""Reports on runs: tables, figures, one document."""
