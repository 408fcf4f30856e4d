"""State that can be layered: counters, and maps that forget what was used least recently.

Always true
  - A layer reads through to its parent and changes nothing in it; it is good until the parent changes.
  - Folding or merging a layer gives what doing the same to the parent would have given, order of forgetting included.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, Self, TypeAlias, TypeVar

Key: TypeAlias = int | str | tuple[str, int]
SHORT = 8  # keys that are cheaper to look at than to look for
COPIED_MAX = 512  # counters that are cheaper to copy than to look for in two places
K = TypeVar("K")
V = TypeVar("V")


class Layered(Protocol):
    """A mutable value. child: a copy that may be changed; fold: the copy takes its original's place."""

    def child(self) -> Self: ...

    def fold(self) -> None: ...


L = TypeVar("L", bound=Layered)


class Counts(dict[Key, int]):
    """Counters that read through to a parent; an absent one is 0. Zeros are left behind and dropped by `folded`."""

    __slots__ = ("parent",)

    def __init__(self, parent: Counts | None = None) -> None:
        self.parent = parent

    def __missing__(self, key: Key) -> int:
        return 0 if self.parent is None else self.parent[key]

    def reader(self) -> Callable[[Key, int], int]:
        """What gives the count of a key; its second argument must be 0. Where nothing lies below it is the dict's."""
        return self.get if self.parent is None else self._through

    def _through(self, key: Key, absent: int) -> int:
        return self[key]

    def child(self) -> Counts:
        """A copy while that is cheap, or else a layer."""
        if self.parent is not None or len(self) > COPIED_MAX:
            return Counts(self)
        twin = Counts()
        twin.update(self)
        return twin

    def drop(self, key: Key) -> None:
        """Make it 0."""
        if self.parent is None:
            self.pop(key, None)
        else:
            self[key] = 0

    def within(self, span: range) -> Iterable[int]:
        """The integer keys in span that may be there, each once; costs the lesser of the span and the keys."""
        if len(span) <= SHORT:
            return span
        found: set[int] = set()
        layer: Counts | None = self
        while layer is not None:
            if len(span) < len(layer):
                found.update([i for i in span if i in layer])
            else:
                found.update([i for i in layer if i in span])  # type: ignore[misc]  # all keys are integers
            layer = layer.parent
        return found

    def folded(self) -> Counts:
        """The parent with these changes in it; where there is none, itself."""
        base = self.parent
        if base is None:
            base = self
        elif base.parent is not None:
            base.update(self)
            return base
        else:
            base.update(self)
        for key in [key for key, count in self.items() if not count]:
            del base[key]
        return base


class Lru(Generic[K, V]):
    """At most `size_max` values, the least recently put leaves first, exactly so in a layer over a parent as well.

    A layer's `own` holds what was put there, in order; `gone` are keys of the parent that left. The parent must not
    change while a layer over it is in use.
    """

    __slots__ = ("_victims", "gone", "own", "parent", "size", "size_max")

    def __init__(self, size_max: int, parent: Lru[K, V] | None = None) -> None:
        self.own: OrderedDict[K, V] = OrderedDict()
        self.gone: set[K] = set()
        self.parent = parent
        self.size: int = 0 if parent is None else parent.size
        self.size_max = size_max
        self._victims: Iterator[K] | None = None

    def __len__(self) -> int:
        return self.size

    def get(self, key: K) -> V | None:
        layer = self
        while True:
            value = layer.own.get(key)
            if value is not None or layer.parent is None or key in layer.gone:
                return value
            layer = layer.parent

    def put(self, key: K, value: V) -> None:
        """Set and make the newest."""
        self.set(key, value, key in self.own or self._in_parent(key))

    def set(self, key: K, value: V, present: bool) -> None:
        """`put` by one who knows whether the key is there."""
        own = self.own
        own[key] = value
        if present:
            own.move_to_end(key)
            return
        self.size += 1
        if self.size > self.size_max:
            self._evict()

    def pop(self, key: K) -> None:
        """Remove a key that is there."""
        if self._in_parent(key):
            self.gone.add(key)
        self.own.pop(key, None)
        self.size -= 1

    def keys(self) -> Iterator[K]:
        """Oldest first."""
        if self.parent is not None:
            yield from (k for k in self.parent.keys() if k not in self.own and k not in self.gone)  # noqa: SIM118
        yield from self.own

    def layer(self) -> Lru[K, V]:
        return Lru(self.size_max, self)

    def merge(self, layer: Lru[K, V]) -> None:
        for key in layer.gone:
            if self._in_parent(key):
                self.gone.add(key)
            self.own.pop(key, None)
        self.own.update(layer.own)
        for key in layer.own:
            self.own.move_to_end(key)
        self.size = layer.size
        self._victims = None

    def _in_parent(self, key: K) -> bool:
        return self.parent is not None and key not in self.gone and self.parent.get(key) is not None

    def _evict(self) -> None:
        if self.parent is not None:
            if self._victims is None:
                self._victims = self.parent.keys()
            for key in self._victims:
                if key not in self.own and key not in self.gone:
                    self.gone.add(key)
                    self.size -= 1
                    return
        self.pop(next(iter(self.own)))


class Values(Lru[K, L]):
    """An Lru of mutable values: a layer copies one before it changes it."""

    __slots__ = ()

    def mine(self, key: K) -> L | None:
        """The value under key, to be changed, as the newest; None where there is none."""
        value = self.own.get(key)
        if value is not None:
            self.own.move_to_end(key)
        elif self.parent is not None and (found := self.get(key)) is not None:
            value = found.child()
            self.set(key, value, True)
        return value

    def begin(self, key: K, value: L) -> L:
        """Put a value under a key that is not there."""
        self.set(key, value, False)
        return value

    def look(self, key: K) -> L | None:
        """The value under key, to be read; moving its sums is no change."""
        value = self.get(key)
        if value is None or key in self.own:
            return value
        return value.child()

    def layer(self) -> Values[K, L]:
        return Values(self.size_max, self)

    def merge(self, layer: Lru[K, L]) -> None:
        for key, value in layer.own.items():
            if self.parent is None or key in self.own:  # else what it lies over belongs to one further down
                value.fold()
        super().merge(layer)
