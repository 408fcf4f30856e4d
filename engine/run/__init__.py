"""The processes of an engine, their sockets, and what each of them may do."""
