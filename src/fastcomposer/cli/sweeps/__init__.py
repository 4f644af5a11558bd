"""Running sweeps.

``watch`` looks after a whole one, ``job`` after each of its jobs. ``search`` has optuna choose the settings
of jobs, ``trained`` evaluates what an earlier sweep has trained, ``processes`` refuses jobs that a launcher
has no place for.
"""
