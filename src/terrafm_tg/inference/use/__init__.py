"""Embeddings in use: nearest places, a map from a few labels, change between two dates."""

from .change import Change, change
from .classify import Classified, classify
from .opened import Embeddings, open_embeddings
from .search import search

__all__ = ["Change", "Classified", "Embeddings", "change", "classify", "open_embeddings", "search"]
