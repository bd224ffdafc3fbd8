"""Measurements: what a real encode, run or link costs."""
