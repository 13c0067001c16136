"""Merge experts and their base by arithmetic on full weights, never on LoRA factors."""
