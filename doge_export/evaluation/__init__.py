"""Perplexity of text and accuracy on multiple choice, with the numbers that other tools give."""
