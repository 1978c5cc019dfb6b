"""From pictures to features: device, preprocessing, augmentation, encoders, cached embeddings."""
