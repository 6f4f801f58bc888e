"""The plan and the pieces of a lowered model."""
