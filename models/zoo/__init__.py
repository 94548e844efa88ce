"""Graphs exported by their own frameworks, kept without weights and refilled by seed (README.md says more)."""
