"""Records that are one article: within a catalogue (`duplicates`), between two lists (`match`).

Both compare records by one `evidence`, which reads titles by `values` and `families`.
"""
