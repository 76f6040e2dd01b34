"""Measurements of our own speed, run by ``make bench``."""
