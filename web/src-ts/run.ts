// Calls of the engine in this thread, with its errors as `OxcowError`.

import { asOxcowError, cancelled } from './errors.js';
import type { LongOptions } from './types.js';
import type { EngineControl } from './wasm/oxcow_reader.js';

/** Runs one call of the engine. */
export async function run<T>(work: () => T | Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw asOxcowError(error);
  }
}

/** Runs one call of the engine that its caller may follow and stop. */
export async function controlled<T>(options: LongOptions, work: (control: EngineControl) => T | Promise<T>): Promise<T> {
  const { signal, onProgress } = options;
  if (signal?.aborted) throw cancelled(signal);
  let stop: (() => void) | undefined;
  const stopped = signal && new Promise<void>((resolve) => (stop = resolve));
  if (stop) signal?.addEventListener('abort', stop);
  try {
    return await run(() =>
      work({
        cancelled: () => signal?.aborted ?? false,
        stopped,
        progress: (done, total) => onProgress?.(done, total),
      }),
    );
  } finally {
    // The engine's interest in the promise ends, too: what never settles is never freed.
    if (stop) signal?.removeEventListener('abort', stop);
    stop?.();
  }
}
