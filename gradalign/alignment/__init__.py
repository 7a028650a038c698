"""Alignment: the direction, the engines, the alignment table."""
