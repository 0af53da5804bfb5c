// When a request is tried again, and how long that waits.

import { cancelled } from '../errors.js';

/** The longest wait between two tries, in milliseconds. */
const LONGEST_BACK_OFF = 10_000;
/** The longest wait that a server may ask for; one that wants more has failed for now. */
const LONGEST_ASKED = 60_000;

/** What is known of a failure besides its words. */
export interface FailureDetails {
  /** Whether the same request may fare better later; `at-once`: without a wait, and it does not count. */
  passing?: boolean | 'at-once';
  /** How long the server asks to be left alone, in milliseconds. */
  wait?: number | undefined;
  /** No answer came at all. */
  unanswered?: boolean;
  cause?: unknown;
}

/** Why a request did not give what it should. */
export class Failure extends Error {
  readonly passing: boolean | 'at-once';
  readonly wait: number;
  readonly unanswered: boolean;

  constructor(message: string, details: FailureDetails = {}) {
    super(message, { cause: details.cause });
    this.wait = details.wait ?? 0;
    this.passing = this.wait <= LONGEST_ASKED && (details.passing ?? false);
    this.unanswered = details.unanswered ?? false;
  }
}

/** How long to wait after so many failures: twice as long each time, spread so that readers do not come back together. */
export function backOff(failures: number, first: number): number {
  return Math.min(first * 2 ** (failures - 1), LONGEST_BACK_OFF) * (0.5 + Math.random() / 2);
}

/** A `Retry-After` header in milliseconds: it holds seconds or a date. */
export function retryAfter(header: string | null, now = Date.now()): number | undefined {
  if (header === null) return undefined;
  if (/^\d+$/.test(header.trim())) return Number(header) * 1000;
  const date = Date.parse(header);
  return Number.isNaN(date) ? undefined : Math.max(0, date - now);
}

/** Resolves after so many milliseconds, or rejects when the signal says so. */
export function sleep(milliseconds: number, signal?: AbortSignal): Promise<void> {
  if (signal?.aborted) return Promise.reject(cancelled(signal));
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(cancelled(signal));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', abort);
      resolve();
    }, milliseconds);
    signal?.addEventListener('abort', abort, { once: true });
  });
}
