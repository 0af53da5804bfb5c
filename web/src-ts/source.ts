// From what callers have (a File, bytes, a URL, an object with `read`) to what the engine reads.

import { OxcowError } from './errors.js';
import { httpSource } from './http/source.js';
import type { CustomSource, Source, Traffic, UrlSource, WindowOptions } from './types.js';
import type { EngineSource } from './wasm/oxcow_web.js';

/** Gives `source` the engine's form and counts in `traffic` what is read from it. `signal` stops the opening. */
export async function toEngineSource(
  source: Source,
  traffic: Traffic,
  options: { name?: string | undefined; signal?: AbortSignal | undefined } = {},
): Promise<EngineSource> {
  const custom = await toCustomSource(source, options.signal);
  const { size } = custom;
  if (!Number.isSafeInteger(size) || size < 0) {
    throw new OxcowError('io', `A source's size must be a whole number of bytes, not ${size}`);
  }
  const pending = new WeakMap<Promise<unknown>, Reading>();
  return {
    name: options.name ?? custom.name ?? 'image',
    size,
    windows: windowsOf(custom),
    read(offset, length) {
      traffic.bytes += length;
      traffic.reads += 1;
      const reading = new Reading();
      const answer = custom.read(offset, length, reading);
      if (answer instanceof Promise) pending.set(answer, reading);
      return answer;
    },
    cancel: (answer) => pending.get(answer)?.abort(),
    turn,
  };
}

/** A read under way. Most sources never look at its signal, and making one costs more than a small read. */
class Reading {
  #controller: AbortController | undefined;

  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    return this.#controller.signal;
  }

  abort(): void {
    this.#controller?.abort();
  }
}

function windowsOf({ windowed }: CustomSource): Required<WindowOptions> | undefined {
  if (!windowed) return undefined;
  const given = windowed === true ? {} : windowed;
  return {
    windowBytes: given.windowBytes ?? 128 << 10,
    longestBytes: given.longestBytes ?? 4 << 20,
    cacheBytes: given.cacheBytes ?? 32 << 20,
    parallel: given.parallel ?? 8,
  };
}

/**
 * Resolves after the thread's event loop has turned once: a long operation on a source that answers at once
 * would otherwise not let a request to stop come in.
 */
function turn(): Promise<void> {
  return new Promise((resolve) => {
    if (typeof setImmediate === 'function') {
      setImmediate(resolve);
      return;
    }
    // Not a timer: browsers delay those.
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(undefined);
  });
}

/** Whether `source` is an object of the caller's own, which only its own thread can call. */
export function isCustomSource(source: Source): source is CustomSource {
  return isObject(source) && 'read' in source && typeof source.read === 'function';
}

/** The URL and options where `source` is a file on a server that has not been opened. */
export function asUrlSource(source: Source): UrlSource | undefined {
  if (source instanceof URL) return { url: source };
  return isObject(source) && 'url' in source && !isCustomSource(source) ? source : undefined;
}

/** Callers in JavaScript may give anything. */
function isObject(source: Source): boolean {
  return typeof source === 'object' && source !== null;
}

/** `source` where it can be read as it is; a file on a server is opened. */
async function toCustomSource(source: Source, signal: AbortSignal | undefined): Promise<CustomSource> {
  if (source instanceof Blob) return blobSource(source);
  if (source instanceof ArrayBuffer) return bytesSource(new Uint8Array(source));
  if (source instanceof Uint8Array) return bytesSource(source);
  if (isCustomSource(source)) return source;
  const remote = asUrlSource(source);
  if (remote) return httpSource(remote.url, { ...remote, ...(signal && { signal }) });
  throw new OxcowError(
    'io',
    'A source is a Blob, a Uint8Array, an ArrayBuffer, a URL, { url } or an object with size and read()',
  );
}

function blobSource(blob: Blob): CustomSource {
  const name = 'name' in blob && typeof blob.name === 'string' ? blob.name : undefined;
  return {
    ...(name !== undefined && { name }),
    size: blob.size,
    windowed: true,
    async read(offset, length) {
      return new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer());
    },
  };
}

function bytesSource(bytes: Uint8Array): CustomSource {
  return { size: bytes.byteLength, windowed: false, read: (offset, length) => bytes.subarray(offset, offset + length) };
}
