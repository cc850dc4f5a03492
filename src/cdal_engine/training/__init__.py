"""Training: data, augmentation, loop and validation."""
