"""The system model: channel, link, compute, payload, outcome. Pure, batched NumPy."""
