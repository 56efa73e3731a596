"""What moves chains: from here on Lightning is imported."""
