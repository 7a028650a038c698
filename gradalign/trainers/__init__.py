"""Thin adapters to trainers; nothing else in the package knows them."""
