"""Adapters: the same bytes cut anywhere give the same events; garbage never raises."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadRecordError
from engine.normalize import complete
from engine.sources import FORMATS
from engine.sources.base import Parsed, SourceSpec
from engine.sources.ndjson import dump
from ipc.event import Event
from tests.unit import test_binetflow, test_netflow, test_unsw
