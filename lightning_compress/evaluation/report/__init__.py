"""The report: columns, rows, what they compare to, and how they are written and shown."""
