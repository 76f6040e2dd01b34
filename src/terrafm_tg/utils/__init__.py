"""Atomic files, parallel work, keyed random numbers and progress."""
