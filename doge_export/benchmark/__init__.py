"""Timing of exported folders, alone or in comparison with their checkpoint in PyTorch."""
