"""How fast the parts are, and what a long run will take."""
