"""The version of this flowkin, as the package says it."""

from importlib.metadata import version

VERSION = version("flowkin")
