"""Rollouts: sampling them, their table."""
