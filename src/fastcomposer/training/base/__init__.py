"""Training of the embedded base's parts on rendered scenes: tokenizer, VAE, CLIP, U-Net."""
