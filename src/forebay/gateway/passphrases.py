"""Whether a passphrase is a room's: hashed once when the room is made, cheap ever after.

What a room keeps is a scrypt hash, which takes tens of milliseconds on purpose. A sender
proves itself once; from then on a keyed hash of what it said, known to this process only, is
compared. Wrong ones are remembered likewise, and guesses at one room are limited, so that
guessing costs the guesser more than us.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
from collections import OrderedDict
from collections.abc import Callable

from forebay.errors import QuotaExceeded, Unauthorized
from forebay.gateway.gate import Bucket

__all__ = ["NOBODY", "Passphrases", "hash_passphrase", "proves"]

NOBODY = "!"
"""The secret of a room that no passphrase opens."""
COST, BLOCK, LANES = 2**13, 8, 1
REMEMBERED = 10_000
GUESSES_PER_S, GUESS_BURST = 2.0, 20
AT_ONCE = 2


def hash_passphrase(passphrase: str, salt: bytes | None = None) -> str:
    """What a room keeps. Takes tens of milliseconds: call it in a thread."""
    salt = os.urandom(16) if salt is None else salt
    made = hashlib.scrypt(
        passphrase.encode("utf-8", "surrogatepass"), salt=salt, n=COST, r=BLOCK, p=LANES, dklen=32
    )
    return f"scrypt${COST}${salt.hex()}${made.hex()}"


def proves(passphrase: str, secret: str) -> bool:
    """Whether ``secret`` was made from ``passphrase``. As slow as making it."""
    parts = secret.split("$")
    if len(parts) != 4 or parts[:2] != ["scrypt", str(COST)]:
        return False
    made = hash_passphrase(passphrase, bytes.fromhex(parts[2]))
    return hmac.compare_digest(made.encode(), secret.encode())


class Passphrases:
    """Proofs given in this process. Bounded: the oldest are asked for again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._key = os.urandom(32)
        self._known: OrderedDict[bytes, bool] = OrderedDict()
        self._guesses: OrderedDict[str, Bucket] = OrderedDict()
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._asking: dict[bytes, asyncio.Future[bool]] = {}

    def _digest(self, passphrase: str, secret: str) -> bytes:
        text = f"{secret}\0{passphrase}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._key, digest_size=24).digest()

    async def make(self, passphrase: str) -> str:
        """Hash a new room's passphrase; whoever made it has proved it."""
        async with self._turn:
            secret = await asyncio.to_thread(hash_passphrase, passphrase)
        self._remember(self._digest(passphrase, secret), True)
        return secret

    async def check(self, passphrase: str, secret: str) -> None:
        """Raises `Unauthorized` for a wrong one, `QuotaExceeded` after too many of them."""
        digest = self._digest(passphrase, secret)
        right = self._known.get(digest)
        if right is None:
            right = await self._ask(digest, passphrase, secret)
        else:
            self._known.move_to_end(digest)
        if not right:
            raise Unauthorized("this is not the room's passphrase", word="Invalid passphrase")

    async def _ask(self, digest: bytes, passphrase: str, secret: str) -> bool:
        """The slow way, once for all who ask the same at the same time."""
        asking = self._asking.get(digest)
        if asking is None:
            self._count_guess(secret)
            asking = self._asking[digest] = asyncio.ensure_future(self._prove(passphrase, secret))
            asking.add_done_callback(lambda done: self._asked(digest, done))
        return await asyncio.shield(asking)

    async def _prove(self, passphrase: str, secret: str) -> bool:
        async with self._turn:
            return await asyncio.to_thread(proves, passphrase, secret)

    def _asked(self, digest: bytes, done: asyncio.Future[bool]) -> None:
        del self._asking[digest]
        if not done.cancelled() and done.exception() is None:
            self._remember(digest, done.result())

    def _count_guess(self, secret: str) -> None:
        now = self._clock()
        bucket = self._guesses.get(secret)
        if bucket is None:
            bucket = self._guesses[secret] = Bucket(GUESSES_PER_S, GUESS_BURST, now)
            if len(self._guesses) > REMEMBERED:
                self._guesses.popitem(last=False)
        if not bucket.take(now):
            raise QuotaExceeded("too many passphrases were tried", retry_after_s=1 / GUESSES_PER_S)

    def _remember(self, digest: bytes, right: bool) -> None:
        self._known[digest] = right
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
