"""Embeddings in use: nearest places, a map from a few labels, change between two dates."""

from .opened import Embeddings, open_embeddings
from .search import search

__all__ = ["Embeddings", "open_embeddings", "search"]
