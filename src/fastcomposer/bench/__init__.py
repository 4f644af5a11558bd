"""Speed: measured steps and reading, and projections from them."""
