"""Benchmarks: how fast engines are, and how far their numbers can be trusted."""
