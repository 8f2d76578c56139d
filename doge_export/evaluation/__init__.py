"""Perplexity of text and accuracy on multiple choice, defined as in other tools."""
