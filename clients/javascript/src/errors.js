/** An error with the gateway's own name for it. `code` is stable, `message` is for people. */
export class ForebayError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{retryAfterS?: number, details?: Record<string, unknown>}} [facts]
   */
  constructor(code, message, facts = {}) {
    super(message || code);
    this.name = "ForebayError";
    this.code = code;
    /** Seconds after which trying again makes sense; undefined where waiting does not help. */
    this.retryAfterS = facts.retryAfterS;
    this.details = facts.details ?? {};
  }

  /**
   * The error that an `error` message stands for.
   * @param {Record<string, any>} message
   */
  static of(message) {
    const details = typeof message.details === "object" && message.details ? message.details : {};
    return new ForebayError(
      String(message.detail_code ?? message.code ?? "internal_error"),
      String(message.message ?? ""),
      { retryAfterS: message.retry_after_s ?? details.retry_after_s, details: { ...details, ...message } },
    );
  }
}
