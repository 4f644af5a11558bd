"""The mini world: rendered people and scenes, the training of its base and metric networks, and its card."""
