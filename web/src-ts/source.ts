// From what callers have (a File, bytes, a URL, a stored file, an object with `read`) to what the engine reads.

import { httpSource } from './http/source.js';
import { OxcowError } from './errors.js';
import { engineStorage, type Opened } from './storage/engine.js';
import { openHandle, openOpfs, type OpenStored } from './storage/opfs.js';
import type { CustomStorage, OpfsFile } from './storage/types.js';
import type { CustomSource, Source, Traffic, UrlSource } from './types.js';

export interface OpenSourceOptions {
  name?: string | undefined;
  /** Stops the opening. */
  signal?: AbortSignal | undefined;
  /** Whether it is to be written to. */
  writable?: boolean;
  /** Whether a stored file is made where there is none. */
  create?: boolean;
}

/** Gives `source` the engine's form and counts in `traffic` what is read from it and written to it. */
export async function openSource(source: Source, traffic: Traffic, options: OpenSourceOptions = {}): Promise<Opened> {
  const stored: OpenStored = { writable: options.writable ?? false, create: options.create ?? false };
  const custom = await toCustomSource(source, stored, options.signal);
  try {
    if (stored.writable && !isCustomStorage(custom)) {
      throw new OxcowError('read-only', `${nameOf(custom) ?? 'The source'} can only be read`);
    }
    const { size } = custom;
    if (!Number.isSafeInteger(size) || size < 0) {
      throw new OxcowError('io', `A source's size must be a whole number of bytes, not ${size}`);
    }
  } catch (error) {
    if (custom !== source && isCustomStorage(custom)) await custom.close?.();
    throw error;
  }
  return engineStorage(custom, traffic, { name: options.name, writable: stored.writable, own: custom !== source });
}

/** The name that a source brings along. */
export function nameOf(source: Source | CustomStorage): string | undefined {
  if (isOpfsFile(source)) return source.opfs;
  return isObject(source) && 'name' in source && typeof source.name === 'string' ? source.name : undefined;
}

/** Whether `source` is an object of the caller's own, which only its own thread can call. */
export function isCustomSource(source: Source): source is CustomSource {
  return isObject(source) && 'read' in source && typeof source.read === 'function';
}

/** Whether that can be written to. */
export function isCustomStorage(source: Source): source is CustomStorage {
  return isCustomSource(source) && 'write' in source && typeof source.write === 'function';
}

function isOpfsFile(source: Source): source is OpfsFile {
  return isObject(source) && 'opfs' in source && typeof source.opfs === 'string';
}

function isFileHandle(source: Source): source is FileSystemFileHandle {
  return isObject(source) && 'kind' in source && source.kind === 'file' && 'getFile' in source;
}

/** The URL and options where `source` is a file on a server that has not been opened. */
export function asUrlSource(source: Source): UrlSource | undefined {
  if (source instanceof URL) return { url: source };
  return isObject(source) && 'url' in source && !isCustomSource(source) ? (source as UrlSource) : undefined;
}

/** Callers in JavaScript may give anything. */
function isObject(source: unknown): source is object {
  return typeof source === 'object' && source !== null;
}

/** `source` where it can be read as it is; a file on a server and a stored one are opened. */
async function toCustomSource(
  source: Source,
  stored: OpenStored,
  signal: AbortSignal | undefined,
): Promise<CustomSource | CustomStorage> {
  if (source instanceof Blob) return blobSource(source);
  if (source instanceof ArrayBuffer) return bytesSource(new Uint8Array(source));
  if (source instanceof Uint8Array) return bytesSource(source);
  if (isCustomSource(source)) return source;
  if (isOpfsFile(source)) return openOpfs(source.opfs, stored);
  if (isFileHandle(source)) return openHandle(source, source.name, stored);
  const remote = asUrlSource(source);
  if (remote) return httpSource(remote.url, { ...remote, ...(signal && { signal }) });
  throw new OxcowError(
    'io',
    'A source is a Blob, a Uint8Array, an ArrayBuffer, a URL, { url }, { opfs }, a FileSystemFileHandle ' +
      'or an object with size and read()',
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
  const read = (offset: number, length: number) => bytes.subarray(offset, offset + length);
  return {
    size: bytes.byteLength,
    windowed: false,
    read,
    readInto(offset, into) {
      const found = read(offset, into.length);
      into.set(found);
      return found.length;
    },
  };
}
