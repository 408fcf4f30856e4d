"""The engine: store, processes, sources, embedders, search."""
