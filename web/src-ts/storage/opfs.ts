// The browser's own file system. In a worker by handles that answer at once and that only one can have.

import { OxcowError } from '../errors.js';
import type { CustomSource } from '../types.js';
import type { CustomStorage } from './types.js';

/** A stored file. */
export interface StoredFile {
  /** Its path: what goes into `{ opfs }`. */
  path: string;
  /** In bytes. */
  size: number;
  /** Milliseconds since 1970. */
  lastModified: number;
}

/** How much may be stored, and how safe it is. */
export interface StorageEstimate {
  /** Bytes in use by this origin. */
  usage: number;
  /** Bytes that it may use at most, as the browser tells now. */
  quota: number;
  /** Whether the browser keeps it until the user says otherwise. */
  persisted: boolean;
}

/** What there is besides opening: works in pages and workers. */
export const opfs = {
  /** Every file below `folder` (all by default), by its path. */
  async list(folder = ''): Promise<StoredFile[]> {
    const found: StoredFile[] = [];
    let directory: FileSystemDirectoryHandle;
    try {
      directory = await directoryAt(segments(folder), false);
    } catch (error) {
      if (isNamed(error, 'NotFoundError')) return found;
      throw error;
    }
    await collect(directory, segments(folder), found);
    return found.sort((a, b) => (a.path < b.path ? -1 : 1));
  },

  /** Whether there is such a file. */
  async has(path: string): Promise<boolean> {
    try {
      await fileAt(path, false);
      return true;
    } catch (error) {
      if (isNamed(error, 'NotFoundError') || isNamed(error, 'TypeMismatchError')) return false;
      throw error;
    }
  },

  /** The file as it is now, for a download; `busy` errors come up when it is read while an image writes to it. */
  async file(path: string): Promise<File> {
    return (await fileAt(path, false)).getFile();
  },

  /** Removes a file; `busy` while an image has it open. */
  async remove(path: string): Promise<void> {
    const names = segments(path);
    const name = names.pop();
    if (name === undefined) throw new OxcowError('io', 'A path in the OPFS is wanted');
    try {
      await (await directoryAt(names, false)).removeEntry(name);
    } catch (error) {
      throw asStorageError(error, path);
    }
  },

  /** Asks that stored images be kept when the browser runs short of space; only in a page. Says whether they are. */
  async persist(): Promise<boolean> {
    const { storage } = navigator;
    if (await storage.persisted()) return true;
    return 'persist' in storage ? storage.persist() : false;
  },

  async estimate(): Promise<StorageEstimate> {
    const [{ usage = 0, quota = 0 }, persisted] = await Promise.all([
      navigator.storage.estimate(),
      navigator.storage.persisted(),
    ]);
    return { usage, quota, persisted };
  },
};

async function collect(directory: FileSystemDirectoryHandle, names: string[], into: StoredFile[]): Promise<void> {
  for await (const [name, handle] of directory.entries()) {
    const path = [...names, name];
    if (handle.kind === 'directory') {
      await collect(handle as FileSystemDirectoryHandle, path, into);
    } else {
      const { size, lastModified } = await (handle as FileSystemFileHandle).getFile();
      into.push({ path: path.join('/'), size, lastModified });
    }
  }
}

function segments(path: string): string[] {
  return path.split('/').filter((name) => name !== '' && name !== '.');
}

async function directoryAt(names: string[], create: boolean): Promise<FileSystemDirectoryHandle> {
  const { storage } = globalThis.navigator ?? {};
  if (typeof storage?.getDirectory !== 'function') {
    throw new OxcowError('unsupported', 'There is no OPFS here (in a browser it needs a secure context)');
  }
  let directory = await storage.getDirectory();
  for (const name of names) directory = await directory.getDirectoryHandle(name, { create });
  return directory;
}

async function fileAt(path: string, create: boolean): Promise<FileSystemFileHandle> {
  const names = segments(path);
  const name = names.pop();
  if (name === undefined) throw new OxcowError('io', 'A path in the OPFS is wanted');
  return (await directoryAt(names, create)).getFileHandle(name, { create });
}

/** A page that was reloaded a moment ago may still have the file: so long that is waited for, in milliseconds. */
const GIVEN_BACK_MS = 1000;
const ASKED_AGAIN_MS = 50;

/** How a stored file is opened. */
export interface OpenStored {
  writable: boolean;
  /** Whether it is made where it is not there. */
  create: boolean;
}

/** Opens the file at `path`. */
export async function openOpfs(path: string, options: OpenStored): Promise<CustomSource | CustomStorage> {
  try {
    return await openHandle(await fileAt(path, options.create), path, options);
  } catch (error) {
    throw asStorageError(error, path);
  }
}

/** What a worker's handle has besides; the options are not known to every browser, which then gives it to one only. */
interface SyncAccess {
  createSyncAccessHandle?(options?: { mode: 'readwrite' | 'read-only' }): Promise<SyncAccessHandle>;
}

/** `FileSystemSyncAccessHandle`, of which only workers know. */
interface SyncAccessHandle {
  read(into: Uint8Array, options: { at: number }): number;
  write(bytes: Uint8Array, options: { at: number }): number;
  truncate(size: number): void;
  getSize(): number;
  flush(): void;
  close(): void;
}

/** Opens what a handle stands for; what the user chose, outside the OPFS, can only be read. */
export async function openHandle(
  handle: FileSystemFileHandle,
  name: string,
  { writable }: OpenStored,
): Promise<CustomSource | CustomStorage> {
  const own = handle as FileSystemFileHandle & SyncAccess;
  try {
    if (typeof own.createSyncAccessHandle === 'function') {
      const mode = writable ? 'readwrite' : 'read-only';
      for (let left = GIVEN_BACK_MS; ; left -= ASKED_AGAIN_MS) {
        try {
          return new Stored(await own.createSyncAccessHandle({ mode }), name);
        } catch (error) {
          if (!isNamed(error, 'NoModificationAllowedError') || left <= 0) throw error;
          await new Promise((resolve) => setTimeout(resolve, ASKED_AGAIN_MS));
        }
      }
    }
  } catch (error) {
    // Files of the user's own have no such access, whatever is asked.
    if (!isNamed(error, 'InvalidStateError')) throw asStorageError(error, name);
  }
  if (writable) {
    throw new OxcowError('read-only', `'${name}' can only be read here: make an overlay or a copy of it to write to`);
  }
  const file = await handle.getFile();
  return {
    name,
    size: file.size,
    windowed: true,
    read: async (offset, length) => new Uint8Array(await file.slice(offset, offset + length).arrayBuffer()),
  };
}

/** A file that this thread has for itself. */
class Stored implements CustomStorage {
  readonly windowed = false;
  #open = true;

  constructor(
    readonly access: SyncAccessHandle,
    readonly name: string,
  ) {}

  get size(): number {
    return this.access.getSize();
  }

  read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    return bytes.subarray(0, this.readInto(offset, bytes));
  }

  readInto(offset: number, into: Uint8Array): number {
    return this.access.read(into, { at: offset });
  }

  write(offset: number, bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      const rest = bytes.subarray(done);
      const count = this.#doing(() => this.access.write(rest, { at: offset + done }));
      // Without room browsers may write a part and say nothing; Chromium's private windows give a negative error number
      // as an unsigned one.
      if (!(count > 0 && count <= rest.length)) {
        throw new OxcowError('no-space', `The browser has no room for more of '${this.name}'`);
      }
      done += count;
    }
  }

  truncate(size: number): void {
    this.#doing(() => this.access.truncate(size));
  }

  flush(): void {
    this.#doing(() => this.access.flush());
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.access.close();
  }

  #doing<T>(work: () => T): T {
    try {
      return work();
    } catch (error) {
      throw asStorageError(error, this.name);
    }
  }
}

function isNamed(error: unknown, name: string): boolean {
  return error instanceof Error && error.name === name;
}

/** The browser's errors, with a code and words that say what to do. */
function asStorageError(error: unknown, name: string): unknown {
  if (isNamed(error, 'NoModificationAllowedError')) {
    return new OxcowError('busy', `'${name}' is open elsewhere: in another tab, or as another image`, { cause: error });
  }
  if (isNamed(error, 'QuotaExceededError')) {
    return new OxcowError('no-space', `The browser has no room for more of '${name}'`, { cause: error });
  }
  if (isNamed(error, 'NotFoundError')) {
    return new OxcowError('io', `There is no '${name}' in the browser's file system`, { cause: error });
  }
  return error;
}
