"""The store: what a generation consists of, how one comes to be, and how it is found again after a death."""
