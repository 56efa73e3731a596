"""Chains as they move, without a trainer."""
