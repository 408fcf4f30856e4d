"""Hostile bytes for everything that decodes or opens something: make fuzz, or python -m tests.fuzz --frames 1000000

Each target takes bytes and either takes them or raises an error of its own layer; no other exception, no more memory,
descriptors or time than its bounds, no crash. A seed draws the same inputs on every machine.
"""
