"""Does a flow find itself when another tool tells it? See __main__.py."""
