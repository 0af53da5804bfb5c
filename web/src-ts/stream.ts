// What every image offers on top of `read` and `map`, in whatever thread its engine runs.

import { cancelled, OxcowError } from './errors.js';
import type { DiskImage, Extent, MapOptions, Range, Size, StreamOptions } from './types.js';

/**
 * How many chunks are read ahead of the consumer: of the default size twice what a source with windows fetches at
 * once, so that over a network one request travels while the one before is answered.
 */
const AHEAD = 8;

/** A size as a number where it is exact, as a bigint past 2^53. */
export function toSize(value: bigint): Size {
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value;
}

/** A size that a caller gave, as the engine takes it. */
export function toBigInt(value: Size, what: string): bigint {
  if (typeof value === 'bigint' ? value >= 0n : Number.isSafeInteger(value) && value >= 0) return BigInt(value);
  throw new OxcowError('out-of-range', `${what} must be a whole number of bytes, not ${value}`);
}

/** The range that options ask for, within a disk of `virtualSize` bytes. */
export function toRange(options: Range, virtualSize: Size): { start: bigint; length: bigint } {
  const size = BigInt(virtualSize);
  const start = toBigInt(options.start ?? 0, 'start');
  const left = start < size ? size - start : 0n;
  const length = options.length === undefined ? left : toBigInt(options.length, 'length');
  if (start > size || length > left) {
    throw new OxcowError('out-of-range', `${length} bytes at ${start} lie outside the disk of ${size} bytes`);
  }
  return { start, length };
}

/** The disk as a stream: reads a few chunks ahead, no more, and nothing that is not asked for. */
export function streamOf(image: DiskImage, options: StreamOptions = {}): ReadableStream<Uint8Array> {
  const { start, length } = toRange(options, image.virtualSize);
  const chunk = BigInt(options.chunkSize ?? 1 << 20);
  const end = start + length;
  const ahead: Promise<Uint8Array>[] = [];
  const stop = new AbortController();
  let next = start;
  let done = 0n;
  const { signal } = options;
  const abort = () => stop.abort(signal?.reason);
  const release = () => signal?.removeEventListener('abort', abort);
  signal?.addEventListener('abort', abort, { once: true });

  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        while (ahead.length < AHEAD && next < end) {
          const count = end - next < chunk ? end - next : chunk;
          const bytes = image.read(toSize(next), Number(count), { signal: stop.signal });
          bytes.catch(() => {}); // Told when its turn comes.
          ahead.push(bytes);
          next += count;
        }
        if (signal?.aborted) {
          abort();
          throw cancelled(signal);
        }
        let bytes: Uint8Array | undefined;
        try {
          bytes = await ahead.shift();
        } catch (error) {
          // Nobody asks for the chunks behind it any more.
          release();
          stop.abort();
          throw error;
        }
        if (!bytes) {
          release();
          controller.close();
          return;
        }
        done += BigInt(bytes.byteLength);
        controller.enqueue(bytes);
        options.onProgress?.(Number(done), Number(length));
      },
      cancel() {
        release();
        next = end;
        ahead.length = 0;
        stop.abort();
      },
    },
    { highWaterMark: 0 },
  );
}

/** The map, page after page. */
export async function* extentsOf(image: DiskImage, options: MapOptions = {}): AsyncGenerator<Extent> {
  const { start, length } = toRange(options, image.virtualSize);
  const end = start + length;
  let at = start;
  while (at < end) {
    const page = await image.map({ ...options, start: toSize(at), length: toSize(end - at) });
    yield* page.extents;
    if (page.next === undefined) return;
    at = BigInt(page.next);
  }
}
