"""Timing of exported folders, alone or against transformers."""
