"""The model: its parts, subject conditioning, attention capture, and checkpoint import and export."""
