"""Datamodules of labelled data."""
