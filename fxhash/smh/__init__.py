"""Structured Multi-Hashing itself: plan, arithmetic and generator, without `torch.fx`."""
