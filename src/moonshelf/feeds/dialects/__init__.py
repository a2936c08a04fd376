"""Readers of feeds, one file a dialect, and what two of them share."""
