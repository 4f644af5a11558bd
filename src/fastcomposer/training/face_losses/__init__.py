"""Losses of faces: of predictions, of the conditioning and of sampled images."""
