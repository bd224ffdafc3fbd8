"""Constrained reinforcement learning on stable-baselines3: algorithms that learn under limits on costs."""
