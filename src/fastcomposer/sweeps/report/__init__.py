"""From the folder of a sweep to its tables, plots and page.

``measured`` reads what the jobs have measured, into ``groups`` by ``scores`` and by logs; ``plots`` and
``trials`` draw it, ``report`` writes it. ``grid_search`` finds the best of a grid of settings, ``objective``
says what a search with optuna goes by.
"""
