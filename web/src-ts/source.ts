// From what callers have (a File, bytes, an object with `read`) to what the engine reads.

import { OxcowError } from './errors.js';
import type { CustomSource, Source, Traffic } from './types.js';
import type { EngineSource } from './wasm/oxcow_web.js';

/** Gives `source` the engine's form and counts in `traffic` what is read from it. */
export function toEngineSource(source: Source, traffic: Traffic, name?: string): EngineSource {
  const custom = toCustomSource(source);
  const { size } = custom;
  if (!Number.isSafeInteger(size) || size < 0) {
    throw new OxcowError('io', `A source's size must be a whole number of bytes, not ${size}`);
  }
  return {
    name: name ?? custom.name ?? 'image',
    size,
    windowed: custom.windowed ?? false,
    read(offset, length) {
      traffic.bytes += length;
      traffic.reads += 1;
      return custom.read(offset, length);
    },
    turn,
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
  return 'read' in source && typeof source.read === 'function';
}

function toCustomSource(source: Source): CustomSource {
  if (source instanceof Blob) return blobSource(source);
  if (source instanceof ArrayBuffer) return bytesSource(new Uint8Array(source));
  if (source instanceof Uint8Array) return bytesSource(source);
  if (isCustomSource(source)) return source;
  throw new OxcowError('io', 'A source is a Blob, a Uint8Array, an ArrayBuffer or an object with size and read()');
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
