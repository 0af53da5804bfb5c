// Between a storage of JavaScript's and the engine: the length, and the account of what is on its way.

import { OxcowError } from '../errors.js';
import type { CustomSource, Traffic, WindowOptions } from '../types.js';
import type { EngineSource } from '../wasm/oxcow_reader.js';
import type { CustomStorage } from './types.js';

/** A source or a storage as the engine takes it, and the end of it. */
export interface Opened {
  engine: EngineSource;
  /** Gives it back: what was opened here, and storages that were to be written to. */
  close(): Promise<void>;
  /** Nothing came of it: what the caller opened stays open. */
  giveUp(): Promise<void>;
}

export interface EngineStorageOptions {
  name: string | undefined;
  writable: boolean;
  /** Whether it was opened here, so that nobody else will close it. */
  own: boolean;
}

/** The engine's form of `custom`. */
export function engineStorage(
  custom: CustomSource | CustomStorage,
  traffic: Traffic,
  options: EngineStorageOptions,
): Opened {
  const storage = options.writable ? (custom as CustomStorage) : undefined;
  const account = storage ? new Account(storage, traffic) : undefined;
  const { size } = custom;
  const pending = new WeakMap<Promise<unknown>, Reading>();
  const readInto = custom.readInto?.bind(custom);
  const readOnly = () => {
    throw new OxcowError('read-only', 'The source is read-only');
  };
  return {
    engine: {
      name: options.name ?? custom.name ?? 'image',
      length: () => account?.length ?? size,
      // What is written to is never kept in windows: a write that nobody waits for may land behind their back.
      windows: storage ? undefined : windowsOf(custom),
      direct: readInto !== undefined,
      read(offset, length) {
        traffic.bytes += length;
        traffic.reads += 1;
        const reading = new Reading();
        const answer = custom.read(offset, length, reading);
        if (!isPromise(answer)) return answer;
        const promise = Promise.resolve(answer);
        pending.set(promise, reading);
        return promise;
      },
      readInto(offset, into) {
        traffic.bytes += into.length;
        traffic.reads += 1;
        return readInto!(offset, into);
      },
      cancel: (answer) => pending.get(answer)?.abort(),
      write: (offset, bytes) => (account ? account.write(offset, bytes) : readOnly()),
      truncate: (length) => (account ? account.truncate(length) : readOnly()),
      flush: () => account?.flush(),
      turn,
    },
    async close() {
      await account?.settled();
      if (options.own || storage) await (custom as Partial<CustomStorage>).close?.();
    },
    async giveUp() {
      await account?.settled();
      if (options.own) await (custom as Partial<CustomStorage>).close?.();
    },
  };
}

/**
 * What is written to a storage. A write that nobody waits for any more goes on: the engine's contract with its
 * storages is that what is left of it has come when a later flush returns.
 */
class Account {
  length: number;
  #storage: CustomStorage;
  #traffic: Traffic;
  #onTheirWay = new Set<Promise<void>>();

  constructor(storage: CustomStorage, traffic: Traffic) {
    this.#storage = storage;
    this.#traffic = traffic;
    this.length = storage.size;
  }

  /** `bytes` are the engine's memory, which moves: only who answers at once may have them. */
  write(offset: number, bytes: Uint8Array): void | Promise<void> {
    this.#traffic.written += bytes.length;
    this.#traffic.writes += 1;
    const given = this.#storage.readInto ? bytes : bytes.slice();
    // Now: the storage may have given its bytes to another thread by then.
    const end = offset + bytes.length;
    return this.#doing(
      () => this.#storage.write(offset, given),
      () => (this.length = Math.max(this.length, end)),
    );
  }

  truncate(length: number): void | Promise<void> {
    const storage = this.#storage;
    if (storage.truncate) return this.#doing(() => storage.truncate?.(length), () => (this.length = length));
    if (length < this.length) {
      throw new OxcowError('unsupported', 'The storage cannot be made shorter: it has no truncate()');
    }
    return length === this.length ? undefined : this.write(length - 1, new Uint8Array(1));
  }

  flush(): void | Promise<void> {
    if (this.#onTheirWay.size === 0) return this.#storage.flush();
    return this.settled().then(() => this.#storage.flush());
  }

  /** Waits for everything that was begun before. */
  async settled(): Promise<void> {
    await Promise.allSettled([...this.#onTheirWay]);
  }

  #doing(work: () => void | Promise<void>, done: () => void): void | Promise<void> {
    let answer: void | Promise<void>;
    try {
      answer = work();
    } catch (error) {
      this.#lookAgain();
      throw error;
    }
    if (!isPromise(answer)) return done();
    const under = Promise.resolve(answer).then(done, (error: unknown) => {
      this.#lookAgain();
      throw error;
    });
    this.#onTheirWay.add(under);
    const over = () => void this.#onTheirWay.delete(under);
    under.then(over, over);
    return under;
  }

  /** A change that failed may have made the storage longer all the same. */
  #lookAgain(): void {
    const { size } = this.#storage;
    if (Number.isSafeInteger(size) && size > this.length) this.length = size;
  }
}

function isPromise<T>(answer: T | Promise<T>): answer is Promise<T> {
  return typeof answer === 'object' && answer !== null && 'then' in answer;
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
