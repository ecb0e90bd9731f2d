// What the server says about its room for recognition, where it refused or is silent otherwise.
const PATIENCE_MS = 5000;

// {full, queued, wait_s: seconds or null}; null where the server cannot be reached.
export async function room() {
  const answer = await fetch("/v1/capacity", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) }).catch(() => null);
  if (!answer) return null;
  const found = await answer.json().catch(() => null);
  if (answer.status === 503 || answer.status === 429) return { full: true, queued: 0, wait_s: Number(answer.headers.get("retry-after")) || null };
  const pool = found?.pools?.find((p) => p.kind === "recognition");
  if (!pool) return { full: false, queued: 0, wait_s: null };
  return { full: pool.free_now <= 0 || pool.queued > 0, queued: pool.queued, wait_s: pool.wait_now_s };
}
