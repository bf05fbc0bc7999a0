"""Towers of models that also hear."""
