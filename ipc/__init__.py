"""What crosses a socket; imports nothing of ours."""
