"""Faster ways to compute networks on a CPU than layer by layer."""
