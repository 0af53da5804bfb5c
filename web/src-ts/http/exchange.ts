// One request and its answer, given up when nothing arrives any more or when the caller says so.

import { cancelled, OxcowError } from '../errors.js';
import { Failure } from './retry.js';

/** An answer's body as it arrives. */
export interface Body {
  /** The next bytes; `undefined` at the end. */
  next(): Promise<Uint8Array | undefined>;
}

export interface ExchangeOptions {
  fetch: typeof fetch;
  url: string;
  init: RequestInit;
  /** How many milliseconds may pass without a byte. */
  timeout: number;
  signal: AbortSignal | undefined;
}

/** Sends a request and lets `use` read the answer; what `use` leaves unread is not transferred. */
export async function exchange<T>(
  { fetch, url, init, timeout, signal }: ExchangeOptions,
  use: (response: Response, body: Body) => Promise<T>,
): Promise<T> {
  if (signal?.aborted) throw cancelled(signal);
  const stop = new AbortController();
  // A `fetch` of the caller's need not heed signals, so the race with this ends the wait in any case.
  const stopped = new Promise<never>((_, reject) => {
    stop.signal.addEventListener('abort', () => reject(new Error('stopped')), { once: true });
  });
  stopped.catch(() => {});
  const abort = () => stop.abort();
  signal?.addEventListener('abort', abort);

  let stalled = false;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      stalled = true;
      stop.abort();
    }, timeout);
  };

  let answered = false;
  let ended = false;
  try {
    alive();
    // Not from the browser's cache, which lets only one request of a file through at a time.
    const request = { ...init, cache: 'no-store', signal: stop.signal } satisfies RequestInit;
    const response = await Promise.race([fetch(url, request), stopped]);
    answered = true;
    const reader = response.body?.getReader();
    const body: Body = {
      async next() {
        alive();
        const part = await (reader ? Promise.race([reader.read(), stopped]) : undefined);
        ended = !part?.value;
        return part?.value;
      },
    };
    return await use(response, body);
  } catch (error) {
    if (signal?.aborted) throw cancelled(signal);
    if (stalled) throw new Failure(`nothing arrived for ${timeout / 1000} s`, { passing: true });
    if (error instanceof Failure || error instanceof OxcowError) throw error;
    throw new Failure(wordsOf(error), { passing: true, unanswered: !answered, cause: error });
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', abort);
    if (!ended) stop.abort();
  }
}

/** Why the network failed; `fetch` itself says little, in Node its error's cause says more. */
function wordsOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  if (!(cause instanceof Error)) return error.message;
  return cause.message || ('code' in cause && String(cause.code)) || error.message;
}
