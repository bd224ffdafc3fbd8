"""Optima with certificates; every answer is a `Solution`."""
