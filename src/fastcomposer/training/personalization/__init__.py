"""Fine-tuning baselines: methods that learn one person, or a few, before they generate them."""
