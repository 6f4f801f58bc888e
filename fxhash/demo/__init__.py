"""The demonstration: one network on real images, dense, narrower, in 8 bits, and compressed to three sizes."""
