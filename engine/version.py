"""The version of this flowkin; pyproject.toml takes it from here. Asking the installed package for it would cost each
process of an engine the import of importlib.metadata, a tenth of its start."""

VERSION = "0.1.0"
