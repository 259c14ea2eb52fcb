"""Parts of the report, one module each: they turn measurements into figures, tables and one plain sentence."""
