"""Weights that are kept in fewer bits than they are computed in; one file a format."""
