"""The three embedders: fitting, running, versions."""
