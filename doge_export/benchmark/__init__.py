"""Timing of exported folders against transformers."""
