"""From what evaluations left behind to tables, plots and a page."""
