"""Reward functions and their protocol."""
