"""Every key of the Redis home, in one place.

All keys of one deployment carry one hash tag, ``{shard}``: quotas, pipes and workers that
serve several pools reach over pools, and each function must stay inside one slot. To spread
load, give pools of their own broker a shard of their own.

`SUFFIX` is the whole list; the function library is built from the same table.
"""

from __future__ import annotations

__all__ = ["SUFFIX", "channel", "key", "prefix"]

SUFFIX = {
    # ------------------------------------------------------------------- of a job <id>
    "job": "j:",  # hash: its record; goes with its window after the end
    "inp": "inp:",  # stream: input, ids <offset>-<attachment>, trimmed behind consumed
    "out": "out:",  # stream: output, ids <offset>-<attempt>, trimmed by the kind's window
    "shown": "sh:",  # hash: offset -> output that its line's next may replace, or might have
    "said": "said:",  # string: text said so far, for attempts that go on after it
    "readers": "wat:",  # hash: gateway -> read attachments
    "blobs": "bl:",  # set: files named by its input and output
    "feeders": "pt:",  # set: pipes into it
    "feeds": "ps:",  # set: pipes out of it
    # ----------------------------------------------------------------- of a pool <name>
    "pool": "pool:",  # hash: counters, virtual time, measured times
    "queue": "q:",  # zset: waiting jobs by place (score, arrival)
    "fair": "fair:",  # hash: tenant -> last tag
    "serving": "pw:",  # set: registered workers
    "active": "act:",  # set: those who may be given work
    "credits": "cr:",  # zset: active workers with free credits
    "stages": "stg:",  # hash: worker -> how far it has come in loading
    "owners": "aff:",  # hash: affinity -> owner, whether kept, cell, how many beside it
    # --------------------------------------------------------------- of a worker <name>
    "worker": "w:",  # hash: registration, newest load, signs of death
    "own": "own:",  # hash: job:attempt -> credit held for it
    "behind": "bh:",  # set: jobs that catch up with their clients
    "control": "ctl:",  # stream: assign, cancel, lost, drain, numbered 1, 2, 3...
    # ------------------------------------------------------------------- of a room <id>
    "room": "r:",  # hash: spec, epoch, head, version of its writers
    "said_in": "rs:",  # stream: captions, ids <offset>-0, the newest 1000 of a day
    "writers": "rw:",  # hash: client -> what is remembered of it
    "heard": "ro:",  # zset: client -> version at its last message
    "holds": "rh:",  # zset: client -> when what it holds must go on (server ms)
    "held": "rq:",  # hash: client -> messages held
    "messages": "rn:",  # zset: a message's own name -> its offset
    "members": "rp:",  # hash: connection -> gateway, who it is
    "crowd": "rg:",  # set: gateways that watch
    # ------------------------------------------------------------ of a gateway, a pipe
    "visited": "gwr:",  # set: rooms a gateway watches or has members in
    "watched": "gwj:",  # set: jobs a gateway watches
    "pipe": "p:",  # hash: a pipe and how far it was copied
    # -------------------------------------------------------------------- of the shard
    "meta": "meta",  # hash: counters, the store's size, who reaps, protocol version
    "pools": "pools",  # set
    "workers": "workers",  # zset: worker -> order of its registration
    "beats": "hb",  # zset: worker -> last beat (server ms)
    "gateways": "gw",  # zset: gateway -> last beat (server ms)
    "due": "due",  # zset: what must happen at a time (server ms)
    "awaited": "awaited",  # set: who has yet to compare its cursors after a failover
    "names": "names",  # hash: tenant, dialect, client's word -> job
    "tenants": "tenants",  # hash: tenant -> live jobs
    "audio": "aud:",  # hash of a tenant: minute -> milliseconds of audio that came in it
    "tickets": "tks",  # zset: a ticket's digest -> its end (server ms)
    "holder": "tk:",  # string of a ticket's digest: on whose behalf its holder comes
    "jobs": "jobs",  # zset: every job by age
    "dead": "dead",  # zset: dead letters by age
    "letter": "dl:",  # hash: a dead letter
    "trash": "trash",  # zset: files of jobs that are gone -> when to remove them (server ms)
    "rooms": "rooms",  # zset: room -> its last message (Unix ms)
    "orphans": "orphans",  # set: pipes nobody carries
    # ------------------------------------------------------------------------ channels
    "push": "push:",  # pub/sub, one per gateway and per worker: copies, hints only
}


def prefix(shard: str) -> str:
    """What every key of ``shard`` begins with."""
    return f"fb:{{{shard}}}:"


def key(shard: str, name: str, of: str = "") -> str:
    return prefix(shard) + SUFFIX[name] + of


def channel(shard: str, of: str) -> str:
    """Where pushes to the gateway or worker ``of`` are published."""
    return key(shard, "push", of)
