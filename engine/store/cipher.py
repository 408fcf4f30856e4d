"""Encryption at rest: what holds records and texts of events is sealed with AES-256-GCM, of the package `cryptography`.

Always true
  - A sealed value is salt (16 bytes) | nonce (12) | ciphertext | tag (16). The nonce is random and new for each value.
    The value's key is derived by HKDF-SHA256 from the key file's and the salt; a salt is random, serves one process and
    VALUES_PER_SALT values at most.
  - Authenticated with it, and stored nowhere: the format version, the table and the key that the value is stored under
    (of a record its seq). A value that is moved to another place, or was sealed for another format, does not open.
  - The bound: within a salt two nonces are equal with a chance below 2^-57, so one key file may seal 2^45 values before
    that is 2^-32 over all of them (NIST SP 800-38D asks for no more): a century at 10,000 events a second.
  - A key leaves this module in no text: not in an error, a repr or a log. `key_id` says which key it is, and is derived
    from it one way.
  - Who has no key does not even import the package.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from engine.errors import CorruptionError, KeyFileError, SourceError
from engine.limits import FORMAT_ENCRYPTED
from engine.store.keys import KEY_BYTES, read_key

SALT_BYTES, NONCE_BYTES, TAG_BYTES = 16, 12, 16
SEALED_BYTES = SALT_BYTES + NONCE_BYTES + TAG_BYTES  # that a value grows by
VALUES_PER_SALT = 1 << 20
SALTS_KEPT = 1_024  # of values that were opened; one is derived again in 15 us
KEY_ID_BYTES = 8
_FORMAT = b"flowkin %d" % FORMAT_ENCRYPTED
_START = SALT_BYTES + NONCE_BYTES


class Cipher:
    """What one key seals and opens. Sealing is not for threads, opening is."""

    def __init__(self, key: bytes) -> None:
        """key: 32 bytes, secret and random."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")

        def derived(size: int, salt: bytes, what: bytes) -> bytes:
            return HKDF(SHA256(), size, salt, _FORMAT + what).derive(key)

        @lru_cache(SALTS_KEPT)
        def aead(salt: bytes) -> AESGCM:
            return AESGCM(derived(KEY_BYTES, salt, b" values"))

        self.key_id = derived(KEY_ID_BYTES, b"", b" key id").hex()
        self._aead, self._invalid = aead, InvalidTag
        self._salt, self._left = b"", 0

    def seal(self, table: str, key: bytes, payload: bytes) -> bytes:
        """The payload as it may be stored in `table` under `key`, SEALED_BYTES longer."""
        if not self._left:
            self._salt, self._left = os.urandom(SALT_BYTES), VALUES_PER_SALT
        self._left -= 1
        nonce = os.urandom(NONCE_BYTES)
        return b"".join((self._salt, nonce, self._aead(self._salt).encrypt(nonce, payload, _bound(table, key))))

    def open(self, table: str, key: bytes, value: bytes | memoryview) -> bytes:
        """What was sealed for this place. Raises CorruptionError for what was not, or not with this key."""
        try:
            if len(value) < SEALED_BYTES:
                raise self._invalid
            aead = self._aead(bytes(value[:SALT_BYTES]))
            return aead.decrypt(value[SALT_BYTES:_START], value[_START:], _bound(table, key))
        except self._invalid:
            raise CorruptionError(
                f"{table}[{key[:40]!r}]",
                f"was not sealed for this place with key {self.key_id}: somebody changed or moved it; it is refused, "
                "all others are unchanged; `flowkin backup restore BACKUP DIR` brings back what was",
            ) from None


class NoKey:
    """In the place of a cipher, where a directory is encrypted and no key was given: what needs none goes on."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id

    def seal(self, table: str, key: bytes, payload: bytes) -> bytes:
        raise self.error()

    def open(self, table: str, key: bytes, value: bytes | memoryview) -> bytes:
        raise self.error()

    def error(self) -> KeyFileError:
        return KeyFileError(
            f"the data directory is encrypted with key {self.key_id} and no key is given; nothing was changed; set "
            "store.key_file to the file that holds it"
        )


def cipher_of(key_file: str, data_dir: Path) -> Cipher | None:
    """The cipher of setting store.key_file; None where it is empty. Raises KeyFileError."""
    if not key_file:
        return None
    path = Path(key_file)
    try:
        if path.resolve().is_relative_to(data_dir.resolve()):
            raise KeyFileError(
                f"store.key_file {path} lies in the data directory, and whoever has the one has the other; nothing was "
                "changed; keep it elsewhere"
            )
        return Cipher(read_key(path))
    except (SourceError, OSError, RuntimeError) as e:  # RuntimeError: a loop of links
        raise KeyFileError(f"store.key_file: {e}; nothing was changed") from e


def fitting(cipher: Cipher | None, key_id: str | None, what: str) -> Cipher | NoKey | None:
    """What opens a directory that names `key_id`: "" it is not encrypted, None it says nothing yet, or cannot be read.
    Raises KeyFileError where `cipher` is another. what: the directory, as an error names it."""
    if cipher is None:
        return NoKey(key_id) if key_id else None
    if key_id is None:
        return cipher
    if not key_id:
        raise KeyFileError(
            f"{what} is not encrypted, but store.key_file is set; nothing was changed; `flowkin migrate` encrypts it, "
            "or unset store.key_file"
        )
    if cipher.key_id != key_id:
        raise KeyFileError(
            f"{what} is encrypted with key {key_id}, store.key_file holds key {cipher.key_id}; nothing was changed; "
            f"set store.key_file to the file that holds key {key_id}"
        )
    return cipher


def _bound(table: str, key: bytes) -> bytes:
    """What is authenticated with a value and not stored."""
    return b"\0".join((_FORMAT, table.encode(), key))
