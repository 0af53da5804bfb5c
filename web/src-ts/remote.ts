// The engine in a worker, as the main thread sees it.

import { Channel, moved, type Call } from './channel.js';
import { OxcowError } from './errors.js';
import { absolute, httpSource } from './http/source.js';
import type { ModuleSource } from './modules.js';
import { RemoteImage, type Link } from './remote-image.js';
import { asUrlSource, isCustomSource, isCustomStorage } from './source.js';
import type { CustomStorage, Storage } from './storage/types.js';
import type { CustomSource, DiskImage, Engine, OpenOptions, Resolve, SafetyReport, Source, WantedFile } from './types.js';
import type { Answer, SentSource } from './worker.js';
import type { CreateOptions, OverlayOptions } from './writing.js';

/** An engine in a worker of its own. */
export class RemoteEngine implements Engine {
  #worker: Worker;
  #channel: Channel;
  #link: Link;
  /** The objects of this side that the worker uses, by number. */
  #sources = new Map<number, CustomSource | CustomStorage>();
  #resolvers = new Map<number, Resolve>();
  #next = 1;
  #closing: Promise<void> | undefined;

  private constructor(worker: Worker) {
    this.#worker = worker;
    this.#channel = new Channel(worker, {
      read: async (args: { remote: number; offset: number; length: number }, call: Call) => {
        const source = this.#source(args.remote);
        // Copied before it is moved: the bytes may be the caller's own buffer.
        return moved((await source.read(args.offset, args.length, call)).slice());
      },
      write: async (args: { remote: number; offset: number; bytes: Uint8Array }) => {
        const storage = this.#storage(args.remote);
        await storage.write(args.offset, args.bytes);
        return storage.size;
      },
      truncate: (args: { remote: number; size: number }) => this.#storage(args.remote).truncate?.(args.size),
      flush: (args: { remote: number }) => this.#storage(args.remote).flush(),
      release: async (args: { remote: number; close: boolean }) => {
        const source = this.#source(args.remote);
        this.#sources.delete(args.remote);
        if (args.close && isCustomStorage(source)) await source.close?.();
      },
      size: (args: { remote: number }) => this.#source(args.remote).size,
      resolve: async (args: { resolve: number; wanted: WantedFile }, call: Call) => {
        const found = await this.#resolvers.get(args.resolve)?.(args.wanted);
        return found && this.#send(found, call.signal);
      },
    });
    this.#link = { channel: this.#channel, send: (source, signal) => this.#send(source, signal) };
    worker.addEventListener('error', (event) => {
      this.#channel.close(new OxcowError('internal', `The engine's worker failed: ${event.message || 'it could not start'}`));
    });
    worker.addEventListener('messageerror', () => {
      this.#channel.close(new OxcowError('internal', 'A message of the engine could not be read'));
    });
  }

  /** Starts the engine in `worker`, which runs this package's worker script. */
  static async start(worker: Worker, modules: { module?: ModuleSource; reader?: ModuleSource } = {}): Promise<RemoteEngine> {
    const engine = new RemoteEngine(worker);
    try {
      await engine.#channel.call('load', { module: modules.module, reader: modules.reader });
    } catch (error) {
      worker.terminate();
      throw error;
    }
    return engine;
  }

  async open(source: Source | Storage, options: OpenOptions = {}): Promise<DiskImage> {
    return this.#opened('open', options, { source: await this.#send(source, options.signal) });
  }

  async create(storage: Storage, options: CreateOptions): Promise<DiskImage> {
    const { dataFile, ...others } = options;
    const sent = dataFile && { dataFile: await this.#send(dataFile, options.signal) };
    return this.#opened('create', others, { source: await this.#send(storage, options.signal), ...sent });
  }

  overlay(storage: Storage, backing: Source, options: OverlayOptions = {}): Promise<DiskImage> {
    return this.#over('overlay', storage, backing, options);
  }

  clone(storage: Storage, source: Source, options: OverlayOptions = {}): Promise<DiskImage> {
    return this.#over('clone', storage, source, options);
  }

  async #over(method: string, storage: Storage, backing: Source, options: OverlayOptions): Promise<DiskImage> {
    const { signal } = options;
    const args = { backing: await this.#send(backing, signal), source: await this.#send(storage, signal) };
    return this.#opened(method, options, args);
  }

  async #opened(
    method: string,
    { signal, resolve, ...options }: Pick<OpenOptions, 'signal' | 'resolve'>,
    args: object,
  ): Promise<DiskImage> {
    let resolver: number | undefined;
    if (resolve) {
      resolver = this.#next++;
      this.#resolvers.set(resolver, resolve);
    }
    try {
      const answer = await this.#channel.call(method, { ...args, options, resolve: resolver }, { signal });
      return new RemoteImage(this.#link, answer as Answer);
    } finally {
      if (resolver !== undefined) this.#resolvers.delete(resolver);
    }
  }

  async inspect(source: Source, options: { name?: string; signal?: AbortSignal } = {}): Promise<SafetyReport> {
    const { signal, ...sent } = options;
    const args = { source: await this.#send(source, signal), ...sent };
    return (await this.#channel.call('inspect', args, { signal })) as SafetyReport;
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    try {
      // Images that are open for writing have something left to write.
      await this.#channel.call('closeAll', {});
    } finally {
      this.#channel.close(new OxcowError('closed', 'The engine is closed'));
      this.#worker.terminate();
      this.#sources.clear();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #source(remote: number): CustomSource | CustomStorage {
    const source = this.#sources.get(remote);
    if (!source) throw new OxcowError('closed', 'The source is closed');
    return source;
  }

  #storage(remote: number): CustomStorage {
    const source = this.#source(remote);
    if (!isCustomStorage(source)) throw new OxcowError('read-only', 'The source is read-only');
    return source;
  }

  /** The form in which `source` crosses to the worker; `signal` stops what has to be opened on this side. */
  async #send(source: Source | Storage, signal?: AbortSignal): Promise<SentSource> {
    const remote = asUrlSource(source);
    if (remote) {
      const { fetch, url, headers, ...options } = remote;
      if (!fetch) {
        // What is relative is so to the page. The worker asks by itself: the bytes need not cross.
        return { ...options, url: absolute(url).href, ...(headers && { headers: [...new Headers(headers)] }) };
      }
      source = await httpSource(url, { ...remote, ...(signal && { signal }) });
    }
    if (!isCustomSource(source)) return source;
    const { size, name, windowed } = source;
    const id = this.#next++;
    this.#sources.set(id, source);
    return {
      remote: id,
      size,
      // Between threads every call is dear.
      windowed: windowed || true,
      ...(name !== undefined && { name }),
      ...(isCustomStorage(source) && { storage: { truncates: source.truncate !== undefined } }),
    };
  }
}
