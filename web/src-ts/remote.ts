// The engine in a worker, as the main thread sees it.

import { Channel, moved, type Call } from './channel.js';
import { OxcowError } from './errors.js';
import { absolute, httpSource } from './http/source.js';
import type { ModuleSource } from './local.js';
import { asUrlSource, isCustomSource } from './source.js';
import { extentsOf, streamOf } from './stream.js';
import type {
  Bitmap,
  CheckReport,
  CustomSource,
  DiskImage,
  Engine,
  ImageInfo,
  LongOptions,
  MapOptions,
  MapPage,
  OpenOptions,
  Overview,
  OverviewOptions,
  Resolve,
  SafetyReport,
  Size,
  Snapshot,
  Source,
  StreamOptions,
  Traffic,
  WantedFile,
} from './types.js';
import type { SentSource } from './worker.js';

interface State {
  virtualSize: Size;
  snapshot: string | undefined;
}

/** An engine in a worker of its own. */
export class RemoteEngine implements Engine {
  #worker: Worker;
  #channel: Channel;
  #sources = new Map<number, CustomSource>();
  #resolvers = new Map<number, Resolve>();
  #next = 1;

  private constructor(worker: Worker) {
    this.#worker = worker;
    this.#channel = new Channel(worker, {
      read: async (args: { remote: number; offset: number; length: number }, call: Call) => {
        const source = this.#sources.get(args.remote);
        if (!source) throw new OxcowError('closed', 'The source is closed');
        // Copied before it is moved: the bytes may be the caller's own buffer.
        return moved((await source.read(args.offset, args.length, call)).slice());
      },
      resolve: async (args: { resolve: number; wanted: WantedFile }, call: Call) => {
        const found = await this.#resolvers.get(args.resolve)?.(args.wanted);
        return found && this.#send(found, call.signal);
      },
    });
    worker.addEventListener('error', (event) => {
      this.#channel.close(new OxcowError('internal', `The engine's worker failed: ${event.message || 'it could not start'}`));
    });
    worker.addEventListener('messageerror', () => {
      this.#channel.close(new OxcowError('internal', 'A message of the engine could not be read'));
    });
  }

  /** Starts the engine in `worker`, which runs this package's worker script. */
  static async start(worker: Worker, module?: ModuleSource): Promise<RemoteEngine> {
    const engine = new RemoteEngine(worker);
    try {
      await engine.#channel.call('load', { module });
    } catch (error) {
      await engine.close();
      throw error;
    }
    return engine;
  }

  async open(source: Source, options: OpenOptions = {}): Promise<DiskImage> {
    const { signal, resolve, ...sent } = options;
    let resolver: number | undefined;
    if (resolve) {
      resolver = this.#next++;
      this.#resolvers.set(resolver, resolve);
    }
    try {
      const args = { source: await this.#send(source, signal), options: sent, resolve: resolver };
      const opened = (await this.#channel.call('open', args, { signal })) as { image: number; state: State };
      return new RemoteImage(this.#channel, opened.image, opened.state);
    } finally {
      if (resolver !== undefined) this.#resolvers.delete(resolver);
    }
  }

  async inspect(source: Source, options: { name?: string; signal?: AbortSignal } = {}): Promise<SafetyReport> {
    const { signal, ...sent } = options;
    const args = { source: await this.#send(source, signal), ...sent };
    return (await this.#channel.call('inspect', args, { signal })) as SafetyReport;
  }

  async close(): Promise<void> {
    this.#channel.close(new OxcowError('closed', 'The engine is closed'));
    this.#worker.terminate();
    this.#sources.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** The form in which `source` crosses to the worker; `signal` stops what has to be opened on this side. */
  async #send(source: Source, signal?: AbortSignal): Promise<SentSource> {
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
    // Between threads every call is dear.
    return { remote: id, size, windowed: windowed || true, ...(name !== undefined && { name }) };
  }
}

class RemoteImage implements DiskImage {
  #channel: Channel;
  #id: number;
  #state: State;

  constructor(channel: Channel, id: number, state: State) {
    this.#channel = channel;
    this.#id = id;
    this.#state = state;
  }

  get virtualSize(): Size {
    return this.#state.virtualSize;
  }

  get snapshot(): string | undefined {
    return this.#state.snapshot;
  }

  #call(method: string, options: LongOptions & object = {}, args: object = {}): Promise<unknown> {
    const { signal, onProgress, ...sent } = options;
    return this.#channel.call(method, { ...sent, ...args, image: this.#id }, { signal, onProgress });
  }

  info(): Promise<ImageInfo[]> {
    return this.#call('info') as Promise<ImageInfo[]>;
  }

  snapshots(): Promise<Snapshot[]> {
    return this.#call('snapshots') as Promise<Snapshot[]>;
  }

  bitmaps(): Promise<Bitmap[]> {
    return this.#call('bitmaps') as Promise<Bitmap[]>;
  }

  map(options?: MapOptions): Promise<MapPage> {
    return this.#call('map', options) as Promise<MapPage>;
  }

  extents(options?: MapOptions) {
    return extentsOf(this, options);
  }

  overview(options: OverviewOptions): Promise<Overview> {
    return this.#call('overview', options) as Promise<Overview>;
  }

  check(options?: LongOptions): Promise<CheckReport> {
    return this.#call('check', options) as Promise<CheckReport>;
  }

  read(offset: Size, length: number, options?: { signal?: AbortSignal }): Promise<Uint8Array> {
    return this.#call('read', options, { offset, length }) as Promise<Uint8Array>;
  }

  stream(options?: StreamOptions): ReadableStream<Uint8Array> {
    return streamOf(this, options);
  }

  async useSnapshot(idOrName: string | undefined): Promise<void> {
    this.#state = (await this.#call('useSnapshot', {}, { snapshot: idOrName })) as State;
  }

  traffic(): Promise<Traffic> {
    return this.#call('traffic') as Promise<Traffic>;
  }

  async close(): Promise<void> {
    await this.#call('close');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
