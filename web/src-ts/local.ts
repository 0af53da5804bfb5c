// The engine in this thread: what the worker runs, and what Node uses directly.

import { asOxcowError, cancelled, OxcowError } from './errors.js';
import { toEngineSource } from './source.js';
import { extentsOf, streamOf, toBigInt, toRange, toSize } from './stream.js';
import type {
  Bitmap,
  CheckReport,
  DiskImage,
  Engine,
  ImageInfo,
  LongOptions,
  MapOptions,
  MapPage,
  OpenOptions,
  Overview,
  OverviewOptions,
  SafetyReport,
  Size,
  Snapshot,
  Source,
  StreamOptions,
  Traffic,
} from './types.js';
import * as wasm from './wasm/oxcow_web.js';

/** Where the compiled engine comes from. */
export type ModuleSource = URL | string | Response | BufferSource | WebAssembly.Module;

/** Loads the engine; once for a thread. */
export async function loadEngine(module: ModuleSource): Promise<void> {
  try {
    await wasm.default({ module_or_path: module });
  } catch (error) {
    throw new OxcowError('internal', `The engine could not be loaded: ${asOxcowError(error).message}`, { cause: error });
  }
}

/** Runs one call of the engine, with its errors as `OxcowError`. */
async function run<T>(work: () => T | Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw asOxcowError(error);
  }
}

/** Runs one call of the engine that its caller may follow and stop. */
async function controlled<T>(options: LongOptions, work: (control: wasm.EngineControl) => T | Promise<T>): Promise<T> {
  const { signal, onProgress } = options;
  if (signal?.aborted) throw cancelled(signal);
  let stop: (() => void) | undefined;
  const stopped = signal && new Promise<void>((resolve) => (stop = resolve));
  if (stop) signal?.addEventListener('abort', stop);
  try {
    return await run(() =>
      work({
        cancelled: () => signal?.aborted ?? false,
        stopped,
        progress: (done, total) => onProgress?.(done, total),
      }),
    );
  } finally {
    // The engine's interest in the promise ends, too: what never settles is never freed.
    if (stop) signal?.removeEventListener('abort', stop);
    stop?.();
  }
}

/** An engine whose wasm module {@link loadEngine} has loaded. */
export class LocalEngine implements Engine {
  #images = new Set<LocalImage>();

  async open(source: Source, options: OpenOptions = {}): Promise<LocalImage> {
    const traffic: Traffic = { bytes: 0, reads: 0 };
    const { signal } = options;
    const resolve: wasm.EngineResolve = async (wanted) => {
      if (signal?.aborted) throw cancelled(signal);
      const found = await options.resolve?.(wanted);
      return found && toEngineSource(found, traffic, { name: nameOf(found) ?? wanted.name, signal });
    };
    const engineOptions = {
      format: options.format,
      ignoreBacking: options.backing === 'ignore',
      ignoreDataFile: options.dataFile === 'ignore',
      cacheBytes: options.cacheBytes,
    };
    const engineSource = await toEngineSource(source, traffic, { name: options.name, signal });
    const engine = await controlled(signal ? { signal } : {}, (control) =>
      wasm.EngineImage.open(engineSource, engineOptions, resolve, control),
    );
    const image = new LocalImage(engine, traffic, () => this.#images.delete(image));
    this.#images.add(image);
    return image;
  }

  async inspect(source: Source, options: { name?: string; signal?: AbortSignal } = {}): Promise<SafetyReport> {
    const engineSource = await toEngineSource(source, { bytes: 0, reads: 0 }, options);
    return (await controlled(options, (control) => wasm.inspect(engineSource, control))) as SafetyReport;
  }

  async close(): Promise<void> {
    await Promise.all([...this.#images].map((image) => image.close()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function nameOf(source: Source): string | undefined {
  return 'name' in source && typeof source.name === 'string' ? source.name : undefined;
}

/** An image that the engine in this thread has opened. */
export class LocalImage implements DiskImage {
  #engine: wasm.EngineImage | undefined;
  #traffic: Traffic;
  #closed: () => void;
  /** Calls under way: the engine's object is freed after the last of them. */
  #running = new Set<Promise<unknown>>();

  constructor(engine: wasm.EngineImage, traffic: Traffic, closed: () => void) {
    this.#engine = engine;
    this.#traffic = traffic;
    this.#closed = closed;
  }

  get #open(): wasm.EngineImage {
    if (!this.#engine) throw new OxcowError('closed', 'The image is closed');
    return this.#engine;
  }

  async #run<T>(
    work: (engine: wasm.EngineImage, control: wasm.EngineControl) => T | Promise<T>,
    options: LongOptions = {},
  ): Promise<T> {
    const engine = this.#open;
    const running = controlled(options, (control) => work(engine, control));
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }

  get virtualSize(): Size {
    return toSize(this.#open.virtualSize());
  }

  get snapshot(): string | undefined {
    return this.#open.usedSnapshot();
  }

  info(): Promise<ImageInfo[]> {
    return this.#run((engine) => engine.info()) as Promise<ImageInfo[]>;
  }

  snapshots(): Promise<Snapshot[]> {
    return this.#run((engine) => engine.snapshots()) as Promise<Snapshot[]>;
  }

  bitmaps(): Promise<Bitmap[]> {
    return this.#run((engine) => engine.bitmaps()) as Promise<Bitmap[]>;
  }

  map(options: MapOptions = {}): Promise<MapPage> {
    return this.#run((engine, control) => {
      const { start, length } = toRange(options, this.virtualSize);
      return engine.map(start, length, options.limit ?? 1000, control);
    }, options) as Promise<MapPage>;
  }

  extents(options?: MapOptions) {
    return extentsOf(this, options);
  }

  overview(options: OverviewOptions): Promise<Overview> {
    return this.#run(async (engine, control) => {
      const { cells } = options;
      if (!Number.isInteger(cells) || cells < 1 || cells > 1 << 20) {
        throw new OxcowError('out-of-range', `cells must be 1 to ${1 << 20}, not ${cells}`);
      }
      const { start, length } = toRange(options, this.virtualSize);
      const { shares, totals } = await engine.overview(start, length, cells, control);
      return { start: toSize(start), length: toSize(length), cells, shares, totals };
    }, options);
  }

  check(options: LongOptions = {}): Promise<CheckReport> {
    return this.#run((engine, control) => engine.check(control), options) as Promise<CheckReport>;
  }

  read(offset: Size, length: number, options: { signal?: AbortSignal } = {}): Promise<Uint8Array> {
    return this.#run((engine, control) => {
      toRange({ start: offset, length }, this.virtualSize);
      return engine.read(toBigInt(offset, 'offset'), length, control);
    }, options);
  }

  stream(options?: StreamOptions): ReadableStream<Uint8Array> {
    return streamOf(this, options);
  }

  async useSnapshot(idOrName: string | undefined): Promise<void> {
    await this.#run((engine) => engine.useSnapshot(idOrName));
  }

  async traffic(): Promise<Traffic> {
    return { ...this.#traffic };
  }

  async close(): Promise<void> {
    const engine = this.#engine;
    if (!engine) return;
    this.#engine = undefined;
    this.#closed();
    await Promise.allSettled(this.#running);
    engine.free();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
