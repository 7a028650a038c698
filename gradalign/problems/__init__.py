"""Pools: what a problem is, where problems come from."""
