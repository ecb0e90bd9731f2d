"""Settings of streamed text: `/send_operation`, and what stands between us and model servers.
Part of `config.table`."""

from __future__ import annotations

from forebay.config import declare

__all__ = [
    "CACHE_MIB",
    "CACHE_S",
    "COMPRESS",
    "CONCURRENCY",
    "FLUSH_CAP",
    "FLUSH_INTERVAL_MS",
    "FLUSH_ITEMS",
    "HEARTBEAT_S",
    "LLAMA_MODEL",
    "LLAMA_SLOTS",
    "LLAMA_THREADS",
    "NOTEBOOK_PORT",
    "RETRIEVAL_S",
    "RETRIEVAL_URL",
]

FLUSH_INTERVAL_MS = declare.number(
    "operations.flush_interval_ms",
    0,
    "`/send_operation`: least time between two lines of text; 0 sends every piece at once. The "
    "original's rule is 50 with `flush_items` 15 and `flush_cap` 20.",
    unit="ms",
    low=0,
    high=10_000,
)
FLUSH_ITEMS = declare.whole(
    "operations.flush_items",
    15,
    "Pieces of text that end the wait sooner, where `flush_interval_ms` is above 0.",
    low=1,
    high=100_000,
)
FLUSH_CAP = declare.whole(
    "operations.flush_cap",
    20,
    "Pieces that wait at most; more are sent, never dropped.",
    low=1,
    high=100_000,
)
HEARTBEAT_S = declare.number(
    "operations.heartbeat_s",
    15,
    "Silence after which `/send_operation` sends a blank line, which its clients pass over; 0 "
    "never.",
    unit="s",
    low=0,
    high=3600,
)
CONCURRENCY = declare.whole(
    "operations.concurrency",
    1000,
    "Operations under way at once; past it 503.",
    low=1,
    high=1_000_000,
)
COMPRESS = declare.yes_no(
    "text.compress",
    False,
    "Streams of text and events (`/send_operation`, `/v1`, `.../events`) are compressed for "
    "clients that accept gzip, every piece whole at once.",
)
LLAMA_MODEL = declare.maybe_text(
    "llama.model", "A GGUF file. Unset: SmolLM2-135M-Instruct, fetched by `make models`."
)
LLAMA_SLOTS = declare.whole("llama.slots", 2, "Generations at once.", low=1, high=64)
LLAMA_THREADS = declare.maybe_whole(
    "llama.threads", "Threads of the model. Unset: all cores but one.", low=1, high=512
)

CACHE_S = declare.number(
    "upstream.cache_s",
    0,
    "How long an answer is kept and given again for exactly the same request, whoever asks; 0 "
    "keeps none. Each worker has its own memory of them.",
    unit="s",
    low=0,
    high=1_000_000,
)
CACHE_MIB = declare.whole(
    "upstream.cache_mib", 64, "Memory for kept answers.", unit="MiB", low=1, high=1_000_000
)
NOTEBOOK_PORT = declare.whole(
    "compat.notebook_port", 18600, "Port of the notebook backend.", low=0, high=65535
)
RETRIEVAL_URL = declare.maybe_text(
    "chat.retrieval_url",
    "A search service whose passages go before questions on `/ws/chat` (`POST URL/search`). "
    "Clients may decline with `use_rag: false`.",
    aliases=declare.aliases("RAG_SERVICE_URL"),
)
RETRIEVAL_S = declare.number(
    "chat.retrieval_s",
    2,
    "Time the search may take; the question is then answered without.",
    unit="s",
    low=0.1,
    high=60,
)
