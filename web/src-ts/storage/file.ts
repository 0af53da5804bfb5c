// Files in Node, by its synchronous calls: the engine runs in the same thread, and a call costs less than a promise.
// Not so a flush, which may take as long as the disk likes: what comes from elsewhere meanwhile would wait for it.

import { closeSync, fdatasync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { promisify } from 'node:util';

import { OxcowError } from '../errors.js';
import type { CustomSource } from '../types.js';
import type { CustomStorage } from './types.js';

/** A file on disk as a source. `close` it after the image. */
export function fileSource(path: string): CustomSource & { close(): void } {
  const file = openSync(path, 'r');
  return {
    name: path,
    size: fstatSync(file).size,
    windowed: false,
    read(offset, length) {
      const bytes = new Uint8Array(length);
      return bytes.subarray(0, readUpTo(file, offset, bytes));
    },
    readInto: (offset, into) => readUpTo(file, offset, into),
    close: () => closeSync(file),
  };
}

export interface FileStorageOptions {
  /** Whether a file that is not there is made. Default: `false`. */
  create?: boolean;
}

/**
 * A file on disk that images are written to; closing the image closes it. A flush is `fdatasync`. Node has no file
 * locks: that no other program (nor another storage of this one) writes to the file meanwhile is the caller's promise.
 */
export function fileStorage(path: string, options: FileStorageOptions = {}): CustomStorage & { close(): Promise<void> } {
  const opened = open(path, options.create ?? false);
  let file: number | undefined = opened;
  const flushes = new Set<Promise<void>>();
  const descriptor = (): number => {
    if (file === undefined) throw new OxcowError('closed', `The file '${path}' is closed`);
    return file;
  };
  return {
    name: path,
    windowed: false,
    get size() {
      return fstatSync(descriptor()).size;
    },
    read(offset, length) {
      const bytes = new Uint8Array(length);
      return bytes.subarray(0, readUpTo(descriptor(), offset, bytes));
    },
    readInto: (offset, into) => readUpTo(descriptor(), offset, into),
    write(offset, bytes) {
      for (let done = 0; done < bytes.length; ) {
        done += writeSync(descriptor(), bytes, done, bytes.length - done, offset + done);
      }
    },
    truncate: (size) => ftruncateSync(descriptor(), size),
    flush() {
      const flush = durable(descriptor());
      flushes.add(flush);
      const over = () => void flushes.delete(flush);
      flush.then(over, over);
      return flush;
    },
    async close() {
      if (file === undefined) return;
      const closing = file;
      file = undefined;
      // The number would be given to the next file that is opened, while a flush that nobody waits for still has it.
      await Promise.allSettled(flushes);
      closeSync(closing);
    },
  };
}

const durable = promisify(fdatasync);

function open(path: string, create: boolean): number {
  try {
    return openSync(path, 'r+');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (create && code === 'ENOENT') {
      // Not 'w+', which would empty a file that somebody else has made in between.
      return openSync(path, 'wx+');
    }
    throw error;
  }
}

/** Reads until `into` is full or the file ends. */
function readUpTo(file: number, offset: number, into: Uint8Array): number {
  let done = 0;
  while (done < into.length) {
    const count = readSync(file, into, done, into.length - done, offset + done);
    if (count === 0) break;
    done += count;
  }
  return done;
}
