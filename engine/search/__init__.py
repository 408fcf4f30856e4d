"""One generation opened for reading, filters, and from a question to an answer."""
