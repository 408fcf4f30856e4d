"""Packets to flows to features."""
