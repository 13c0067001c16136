"""Texts that training and a test set share: equal, equal once normalised, and nearly equal."""
