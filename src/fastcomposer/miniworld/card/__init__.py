"""How good the embedded base is: measurements of its parts, and its card."""
