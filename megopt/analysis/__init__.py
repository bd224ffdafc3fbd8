"""Rollouts, records, Pareto sets, figures, reports."""
