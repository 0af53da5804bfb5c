// A storage in memory that holds only what was written.

import { OxcowError } from '../errors.js';
import type { MemoryStorage } from './types.js';

/** The unit in which memory is taken. */
const CHUNK = 64 << 10;
/** The longest array that one may hope to get. */
const LONGEST = 2 ** 32;

/** A storage in memory, empty or with a copy of `bytes`. What is never written to takes no memory. */
export function memoryStorage(bytes?: Uint8Array, options: { name?: string } = {}): MemoryStorage {
  const storage = new Memory(options.name ?? 'memory');
  if (bytes) storage.write(0, bytes);
  return storage;
}

class Memory implements MemoryStorage {
  readonly name: string;
  readonly windowed = false;
  #size = 0;
  #chunks = new Map<number, Uint8Array>();

  constructor(name: string) {
    this.name = name;
  }

  get size(): number {
    return this.#size;
  }

  read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(Math.max(0, Math.min(length, this.#size - offset)));
    this.readInto(offset, bytes);
    return bytes;
  }

  readInto(offset: number, into: Uint8Array): number {
    const count = Math.max(0, Math.min(into.length, this.#size - offset));
    for (const { index, from, at, length } of parts(offset, count)) {
      const chunk = this.#chunks.get(index);
      if (chunk) into.set(chunk.subarray(from, from + length), at);
      else into.fill(0, at, at + length);
    }
    return count;
  }

  write(offset: number, bytes: Uint8Array): void {
    for (const { index, from, at, length } of parts(offset, bytes.length)) {
      let chunk = this.#chunks.get(index);
      if (!chunk) this.#chunks.set(index, (chunk = new Uint8Array(CHUNK)));
      chunk.set(bytes.subarray(at, at + length), from);
    }
    this.#size = Math.max(this.#size, offset + bytes.length);
  }

  truncate(size: number): void {
    if (size < this.#size) {
      const kept = Math.ceil(size / CHUNK);
      for (const index of this.#chunks.keys()) if (index >= kept) this.#chunks.delete(index);
      // What is cut off must not come back when it grows again.
      this.#chunks.get(kept - 1)?.fill(0, size - (kept - 1) * CHUNK);
    }
    this.#size = size;
  }

  flush(): void {}

  bytes(): Uint8Array {
    if (this.#size > LONGEST) throw new OxcowError('no-space', `${this.#size} bytes are too many for one array`);
    return this.read(0, this.#size);
  }

  toBlob(): Blob {
    const zeros = new Blob([new Uint8Array(CHUNK)]);
    const pieces: BlobPart[] = [];
    for (let at = 0; at < this.#size; at += CHUNK) {
      const chunk = this.#chunks.get(at / CHUNK);
      const left = Math.min(CHUNK, this.#size - at);
      if (chunk) pieces.push(chunk.subarray(0, left) as Uint8Array<ArrayBuffer>);
      else pieces.push(left === CHUNK ? zeros : zeros.slice(0, left));
    }
    return new Blob(pieces);
  }
}

/** A range as pieces of chunks: which, from where in it, and where in the range. */
function* parts(offset: number, length: number) {
  for (let at = 0; at < length; ) {
    const index = Math.floor((offset + at) / CHUNK);
    const from = offset + at - index * CHUNK;
    const count = Math.min(CHUNK - from, length - at);
    yield { index, from, at, length: count };
    at += count;
  }
}
