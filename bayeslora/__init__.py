"""Bayesian posterior sampling of deep networks and LoRA adapters by stochastic-gradient Langevin samplers."""
