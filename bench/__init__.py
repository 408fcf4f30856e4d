"""Measurements; they assert nothing."""
