"""LightningModules and callbacks.

``base_module`` is what all trainings share; ``module`` trains FastComposer, ``personalization/`` the
fine-tuning baselines.
"""
