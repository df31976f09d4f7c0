"""The report: its rows, its files and how they are shown."""
