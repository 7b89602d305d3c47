"Who may call: API keys, of which only hashes are known, and a rate for each."
import hashlib
import hmac
import logging
import math
import re
import secrets
import sqlite3
import threading
import time
from pathlib import Path

from agri_cae.config import ConfigError

from .problems import Problem
from .settings import ApiSettings

log = logging.getLogger("agri_cae.api")
_ENTRY = re.compile(r"([\w.-]+):([0-9a-f]{64})(:revoked)?")


def new_key(name:str)->tuple: # the key, for its owner only; the entry, for the service
    "Make up a key of 256 random bits. Raises `ConfigError`."
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(name, "is no name of a key", "Take letters, digits, . _ and -")
    key = f"cae_{secrets.token_urlsafe(32)}"
    return key, f"{name}:{_digest(key)}"


def _digest(key): return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _read(text, where):
    "(name, digest, revoked) of each entry. One that is wrong may be a key, so it is not shown"
    lines = [o.strip() for o in re.split("[,\n]", text)]
    found = [_ENTRY.fullmatch(o) for o in lines if o and o[0] != "#"]
    if None in found:
        what = "holds an entry that is not NAME:SHA256 or NAME:SHA256:revoked"
        raise ConfigError(where, what, "Make entries with: agri-cae key NAME")
    return [m.groups() for m in found]


class Keys:
    "The keys of the settings. Raises `ConfigError`."
    def __init__(self, cfg:ApiSettings):
        self.cfg, self.stamp = cfg, None
        self.entries = self._entries()
        if not self.open and not self.entries: log.warning("there are no API keys, so nobody gets in")
        self.metrics = _read(cfg.metrics_key, "AGRI_CAE_METRICS_KEY")

    def _entries(self):
        own, file = _read(self.cfg.keys, "AGRI_CAE_KEYS"), self.cfg.keys_file
        if not file: return own
        try:
            self.stamp = file.stat().st_mtime_ns, file.stat().st_size
            return own + _read(file.read_text("utf-8"), file)
        except (OSError, ValueError) as e:
            raise ConfigError(file, f"cannot be read ({e})", "Check AGRI_CAE_KEYS_FILE") from None

    def _fresh(self):
        "The entries, read again when the file has changed. Whoever breaks the file locks out everybody, not nobody"
        f = self.cfg.keys_file
        if f and (not f.exists() or self.stamp != (f.stat().st_mtime_ns, f.stat().st_size)):
            stamp = self.stamp
            try:
                self.entries = self._entries()
                log.info("%d keys were read from %s", len(self.entries), f)
            except ConfigError as e:
                if self.entries or stamp: log.error("%s Until then nobody gets in.", e)
                self.entries, self.stamp = [], None
        return self.entries

    @property
    def open(self): return not self.cfg.keys and self.cfg.keys_file is None

    def owner(self, key:str|None)->str|None: # name of the key; None where no keys are asked for
        "Who has this key. Raises `Problem` 401 or 403."
        return None if self.open else _owner(key, self._fresh())

    def reader(self, key:str|None):
        "Let in who may read the metrics: the key of its own, where there is one. Raises `Problem` 401 or 403."
        if self.metrics: _owner(key, self.metrics)
        else: self.owner(key)


def _owner(key, entries):
    """Name of a key. All entries are compared, each in constant time: neither the time nor the answer says whether a
    key is nearly right"""
    digest, name, revoked = _digest(key or ""), "", None
    for n, h, r in entries:
        if hmac.compare_digest(h, digest): name, revoked = n, r
    if not name:
        text = "This service wants an API key: Authorization: Bearer KEY, or X-API-Key: KEY."
        raise Problem(401, text, WWW_Authenticate="Bearer")
    if revoked: raise Problem(403, "This API key was revoked.")
    return name


class Rates:
    """A bucket of tokens for each name: full it allows a minute's requests at once, then it fills at the rate.

    Processes share the buckets in an SQLite file."""
    def __init__(self,
        per_minute:float,     # requests; 0: no limit
        file:Path|None=None,  # where processes count together; None: this process alone
    ):
        self.per_minute, self.full, self.lock = per_minute, max(1., per_minute), threading.Lock()
        if not per_minute: return
        self.db = sqlite3.connect(file or ":memory:", timeout=10, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA synchronous = OFF")   # nothing need survive the service
        self.db.execute("CREATE TABLE IF NOT EXISTS buckets (name TEXT PRIMARY KEY, tokens REAL, time REAL)")

    def take(self, name:str):
        "One request of a name. Raises `Problem` 429."
        if not self.per_minute: return
        with self.lock:
            self.db.execute("BEGIN IMMEDIATE")
            tokens = self._take(name, time.monotonic())
            self.db.execute("COMMIT")
        if tokens >= 1: return
        wait = math.ceil((1 - tokens) * 60 / self.per_minute)
        raise Problem(429, f"More than {self.per_minute:g} requests a minute.", Retry_After=str(wait))

    def _take(self, name, now):
        "What was in the bucket before. One that is full again is forgotten"
        self.db.execute("DELETE FROM buckets WHERE time < ?", (now - 60 * self.full / self.per_minute,))
        found = self.db.execute("SELECT tokens, time FROM buckets WHERE name = ?", (name,)).fetchone()
        tokens, then = found or (self.full, now)
        tokens = min(self.full, tokens + (now - then) * self.per_minute / 60)
        left = tokens - 1 if tokens >= 1 else tokens
        self.db.execute("REPLACE INTO buckets VALUES (?, ?, ?)", (name, left, now))
        return tokens
