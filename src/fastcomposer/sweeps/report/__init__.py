"""From the folder of a sweep to its tables, plots and page."""
