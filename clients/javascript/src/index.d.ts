export interface LineOptions {
  /** API key, sent as a header; browsers cannot set headers: give `ticket` there. */
  key?: string;
  /** Makes a one-time ticket (POST /api/ticket) for each connection. */
  ticket?: () => Promise<string>;
  /** Connections tried in a row before giving up (10). */
  attempts?: number;
  /** First wait between them, doubled up to 5 s, with full jitter (100). */
  backoffMs?: number;
  /** Where there is no global one: that of the package `ws`. */
  WebSocket?: any;
}

export interface SpeechOptions extends LineOptions {
  sampleRate?: number;
  channels?: 1 | 2;
  /** More fields of the protocol's `start`, such as `voice`. */
  start?: Record<string, unknown>;
}

export interface Chunk {
  /** Index of the first unit (code point) that this audio speaks. */
  unit: number;
  text: string;
  seq: number;
  audio: Int16Array;
  sampleRate: number;
  channels: number;
}

export class SpeechSession implements AsyncIterable<Chunk> {
  constructor(urls: string | string[], options?: SpeechOptions);
  readonly resumed: number;
  restarts: number;
  say(text: string): void;
  end(): void;
  cancel(): void;
  close(): void;
  [Symbol.asyncIterator](): AsyncGenerator<Chunk>;
}

export interface ListenOptions extends LineOptions {
  sampleRate?: number;
  /** Seconds of sound kept for a server that has not stored it; `say` waits beyond (60). */
  holdS?: number;
  language?: string;
  model?: string;
  partials?: boolean;
  queue?: boolean;
}

export type News =
  | { type: "partial" | "final"; event: number; text: string; start: number; end: number; language: string }
  | { type: "queued"; position: number; etaS: number | null };

export class ListenSession implements AsyncIterable<News> {
  constructor(urls: string | string[], options?: ListenOptions);
  readonly resumed: number;
  readonly heldS: number;
  text: string;
  say(samples: Int16Array): Promise<void>;
  end(): void;
  cancel(): void;
  close(): void;
  [Symbol.asyncIterator](): AsyncGenerator<News>;
}

export interface EventOptions {
  key?: string;
  /** Id of the last event you have. */
  after?: string;
  /** Event types that end the stream (["ended"]). */
  until?: string[];
  attempts?: number;
  backoffMs?: number;
  signal?: AbortSignal;
}

export interface StreamEvent {
  id: string;
  type: string;
  data: any;
}

export function events(urls: string | string[], options?: EventOptions): AsyncGenerator<StreamEvent>;

export class ForebayError extends Error {
  code: string;
  retryAfterS?: number;
  details: Record<string, unknown>;
}
