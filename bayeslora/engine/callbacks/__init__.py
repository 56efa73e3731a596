"""Callbacks that accompany a chain through Lightning's loop."""
