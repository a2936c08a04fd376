"""Drawn campaigns with known truth: what a creative says and shows follows from its construction.

`claims` are the words, `construction` the choices, `scenery` and `compose` draw them, `clicks` says what they
are worth, `simulator` puts campaigns together. `python -m research.synthetic.campaigns` writes them to disk.
"""
