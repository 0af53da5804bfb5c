// What every image offers on top of `read` and `map`, in whatever thread its engine runs.

import { cancelled, OxcowError } from './errors.js';
import type { DiskImage, Extent, LongOptions, MapOptions, Range, Size, StreamOptions } from './types.js';
import type { ExportOptions } from './writing.js';

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

/** Bytes that are streamed. */
export interface Content {
  start: bigint;
  end: bigint;
  read(offset: Size, length: number, options: { signal: AbortSignal }): Promise<Uint8Array>;
  /** Nothing more is asked for. */
  close?(): void;
}

/** The disk as a stream. */
export function streamOf(image: DiskImage, options: StreamOptions = {}): ReadableStream<Uint8Array> {
  const { start, length } = toRange(options, image.virtualSize);
  const read: Content['read'] = (offset, count, { signal }) => image.read(offset, count, { signal });
  return chunksOf(() => ({ start, end: start + length, read }), options);
}

/** A file that is made while it is read. */
export interface Exported {
  size: Size;
  read(offset: Size, length: number, options: { signal?: AbortSignal }): Promise<Uint8Array>;
  close(): void;
}

/** The disk as a file. */
export function exportOf(
  image: DiskImage,
  open: (options: ExportOptions) => Promise<Exported>,
  options: ExportOptions,
): ReadableStream<Uint8Array> {
  const { format = 'qcow2', signal, onProgress, chunkSize, ...wanted } = options;
  if (format !== 'raw' && format !== 'qcow2') {
    throw new OxcowError('unsupported', `A disk can be exported as 'raw' or 'qcow2', not '${String(format)}'`);
  }
  if (format === 'raw') return streamOf(image, options);
  return chunksOf(async (signal) => {
    const { size, read, close } = await open({ ...wanted, signal });
    return { start: 0n, end: BigInt(size), read, close };
  }, options);
}

/** The content as a stream, opened when the first chunk is asked for: reads a few chunks ahead, no more. */
export function chunksOf(
  open: (signal: AbortSignal) => Content | Promise<Content>,
  options: LongOptions & { chunkSize?: number },
): ReadableStream<Uint8Array> {
  const chunk = BigInt(options.chunkSize ?? 1 << 20);
  const ahead: Promise<Uint8Array>[] = [];
  const stop = new AbortController();
  let content: Content | undefined;
  let next = 0n;
  let done = 0n;
  let over = false;
  const { signal } = options;
  const abort = () => stop.abort(signal?.reason);
  signal?.addEventListener('abort', abort, { once: true });
  const release = () => {
    signal?.removeEventListener('abort', abort);
    over = true;
    // Nobody asks for the chunks behind any more.
    stop.abort();
    content?.close?.();
    content = undefined;
  };
  const opened = async () => {
    const now = await open(stop.signal);
    next = now.start;
    if (over) now.close?.();
    return now;
  };

  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        let bytes: Uint8Array | undefined;
        try {
          if (signal?.aborted) throw cancelled(signal);
          const { start, end, read } = (content ??= await opened());
          if (over) return;
          while (ahead.length < AHEAD && next < end) {
            const count = end - next < chunk ? end - next : chunk;
            const bytes = read(toSize(next), Number(count), { signal: stop.signal });
            bytes.catch(() => {}); // Told when its turn comes.
            ahead.push(bytes);
            next += count;
          }
          bytes = await ahead.shift();
          if (bytes) {
            done += BigInt(bytes.byteLength);
            controller.enqueue(bytes);
            options.onProgress?.(Number(done), Number(end - start));
          }
        } catch (error) {
          release();
          throw signal?.aborted ? cancelled(signal) : error;
        }
        if (bytes) return;
        release();
        controller.close();
      },
      cancel() {
        ahead.length = 0;
        release();
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
